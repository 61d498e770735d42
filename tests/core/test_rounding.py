import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.rounding import annealed_beta, indecision, logits_of, rectified_sigmoid


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
