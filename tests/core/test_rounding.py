import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.rounding import (
    annealed_beta,
    gradient_of_indecision,
    gradient_of_logits,
    indecision,
    logits_of,
    rectified_sigmoid,
)


@given(st.floats(0, 1))
def test_logits_and_share_are_inverse(share: float):
    assert float(rectified_sigmoid(logits_of(torch.tensor(share)))) == pytest.approx(share, abs=1e-5)


def test_both_ends_are_reached():
    assert rectified_sigmoid(torch.tensor([-5.0, 5.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("beta", [2.0, 8.0, 20.0])
def test_only_decided_weights_cost_nothing(beta: float):
    assert float(indecision(torch.tensor([0.0, 1.0, 1.0]), beta)) == 0.0
    assert float(indecision(torch.tensor([0.5]), beta)) == 1.0
    # by hand: 1 - |2 * 0.75 - 1|^beta
    assert float(indecision(torch.tensor([0.75]), beta)) == pytest.approx(1 - 0.5**beta)


def test_beta_falls_from_20_to_2_after_the_warm_up():
    assert annealed_beta(0.1) is None
    betas = [annealed_beta(step / 100) for step in range(20, 101)]
    assert betas[0] == 20
    assert betas[-1] == pytest.approx(2)
    assert betas == sorted(betas, reverse=True)


@pytest.mark.parametrize("beta", [2.0, 7.3, 20.0])
def test_gradients_are_those_of_autograd(beta: float):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(500, generator=generator) * 3).requires_grad_()  # a third is beyond the ends
    pull = torch.randn(500, generator=generator)
    up = rectified_sigmoid(logits)
    ((up * pull).sum() + 0.7 * 500 * indecision(up, beta)).backward()
    sigmoid, up = logits.detach().sigmoid(), up.detach()
    assert 0 < int(((up == 0) | (up == 1)).sum()) < 500
    made = gradient_of_logits(pull + 0.7 * gradient_of_indecision(up, beta), sigmoid, up)
    torch.testing.assert_close(made, logits.grad)
