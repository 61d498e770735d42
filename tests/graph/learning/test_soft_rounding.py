import pytest
import torch

from microtome.core.affine import fake_quantize
from microtome.core.range_search import weight_qparams
from microtome.core.rounding import indecision, rectified_sigmoid
from microtome.graph.learning.soft_rounding import DroppedGrid, SoftWeight, decided, in_float
from microtome.types import QParams, QType

UNSIGNED = QType(4, signed=False, symmetric=False)


def weight() -> torch.Tensor:
    return torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_it_starts_at_the_float_weight_and_decides_for_the_nearest(bits: int, axis: int | None):
    real = weight()
    qparams = weight_qparams(real, QType(bits, narrow=bits > 2, axis=axis), search=False)
    soft = SoftWeight(qparams, real)
    nearest = fake_quantize(real, qparams)
    inside = (nearest - real).abs() <= qparams.scale.max() / 2
    torch.testing.assert_close(
        soft(real).detach()[inside], real[inside], rtol=0, atol=1e-3 * float(qparams.scale.max())
    )
    with decided([soft]):
        torch.testing.assert_close(soft(real), nearest)
    torch.testing.assert_close(soft.settled(real), nearest)
    assert soft.capacity == real.numel() * bits


def soft_and_by_autograd(bits: int) -> tuple[SoftWeight, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a soft weight, its float weight, its logits for autograd, and the weight that these make."""
    real = weight()
    qparams = weight_qparams(real, QType(bits, narrow=bits > 2, axis=0), search=True)  # clips some
    soft = SoftWeight(qparams, real)
    soft.logits.data.add_(torch.randn(real.shape, generator=torch.Generator().manual_seed(1)))
    logits = soft.logits.detach().clone().requires_grad_()
    scale = qparams.scale.reshape(-1, 1, 1, 1)
    integers = (real / scale).floor() + rectified_sigmoid(logits)
    return soft, real, logits, integers.clamp(qparams.qtype.qmin, qparams.qtype.qmax) * scale


@pytest.mark.parametrize("beta", [None, 5.0])
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_those_of_autograd(bits: int, beta: float | None):
    soft, real, logits, made = soft_and_by_autograd(bits)
    torch.testing.assert_close(soft(real), made)
    factors = [torch.randn(real.shape, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    for factor in factors:  # two samples gather in one weight
        (soft(real) * factor).sum().backward()
        (made * factor).sum().backward(retain_graph=True)
    if beta is not None:
        (0.3 * real.numel() * indecision(rectified_sigmoid(logits), beta)).backward()
    soft.pull(beta, 0.3)
    torch.testing.assert_close(soft.logits.grad, logits.grad)
    assert float((logits.grad != 0).float().mean()) > 0.3


def test_after_a_step_the_weight_follows_the_logits():
    soft, real, _, _ = soft_and_by_autograd(4)
    before = soft(real)
    before.sum().backward()
    soft.pull(None, 0.0)
    soft.logits.data.add_(50.0)
    _, _, high = soft._neighbours()
    torch.testing.assert_close(soft(real).detach(), high)
    assert not torch.equal(before, high)


def test_what_was_decided_is_decided_anew_for_other_logits():
    soft, real, _, _ = soft_and_by_autograd(4)
    with decided([soft]):
        first = soft(real)
    soft.logits.data.neg_()
    with decided([soft]):
        assert not torch.equal(soft(real), first)
        assert torch.equal(soft(real), soft.settled(real))


def test_switches_hold_inside_of_the_block_only():
    real = weight()
    soft = SoftWeight(weight_qparams(real, QType(4, narrow=True, axis=0), search=False), real)
    grid = DroppedGrid(QParams(torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), UNSIGNED))
    with in_float([soft, grid]):
        assert torch.equal(soft(real), real)
        assert torch.equal(grid(real), real)
    assert not torch.equal(grid(real), real)
    soft.hard = True
    with decided([soft]):
        pass
    assert soft.hard  # what was decided before stays so


def test_the_share_that_is_dropped_stays_in_float():
    grid = DroppedGrid(QParams(torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), UNSIGNED))
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    grid.drop = 0.3
    assert float((grid(x) == x).float().mean()) == pytest.approx(0.3, abs=0.01)
    grid.drop = 0.0
    assert torch.equal(grid(x) * 4, (grid(x) * 4).round())


def test_zeros_stay_zero_where_that_is_asked_for():
    real = weight()
    real[:, 0] = 0
    qparams = weight_qparams(real, QType(4, narrow=True, axis=0), search=False)
    soft = SoftWeight(qparams, real, zeros=True)
    free = SoftWeight(qparams, real)
    for one in (soft, free):
        one.logits.data += 5  # all are drawn upwards
    assert not bool(soft(real)[:, 0].any())
    assert not bool(soft.settled(real)[:, 0].any())
    assert bool(free.settled(real)[:, 0].all())
    torch.testing.assert_close(soft.settled(real)[:, 1:], free.settled(real)[:, 1:])
