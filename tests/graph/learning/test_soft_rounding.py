import pytest
import torch

from microtome.core.affine import fake_quantize
from microtome.core.range_search import weight_qparams
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
    torch.testing.assert_close(soft(real)[inside], real[inside], rtol=0, atol=1e-3 * float(qparams.scale.max()))
    with decided([soft]):
        torch.testing.assert_close(soft(real), nearest)
    torch.testing.assert_close(soft.settled(real), nearest)
    assert soft.capacity == real.numel() * bits


def test_gradients_reach_the_logits():
    real = weight()
    soft = SoftWeight(weight_qparams(real, QType(4, narrow=True, axis=0), search=False), real)
    soft(real).sum().backward()
    assert float((soft.logits.grad != 0).float().mean()) > 0.9


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
