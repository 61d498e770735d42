import pytest
import torch

from microtome.core.affine import fake_quantize
from microtome.core.range_search import channel_extremes, weight_qparams
from microtome.types import QType

AXES = pytest.mark.parametrize("axis", [None, 0, 1])


def weight(seed: int = 0) -> torch.Tensor:
    values = torch.randn((6, 5, 3, 3), generator=torch.Generator().manual_seed(seed)) ** 3
    values[2] = 0
    values[3, 0, 0, 0] = 40.0
    return values


def errors(values: torch.Tensor, qtype: QType, search: bool) -> torch.Tensor:
    difference = (fake_quantize(values, weight_qparams(values, qtype, search=search)) - values).square()
    return difference.sum() if qtype.axis is None else difference.movedim(qtype.axis, 0).flatten(1).sum(1)


@AXES
def test_extremes_per_channel(axis: int | None):
    values = weight()
    low, high = channel_extremes(values, axis)
    if axis is None:
        assert (low.shape, float(low), float(high)) == ((), float(values.min()), float(values.max()))
    else:
        for channel in range(values.shape[axis]):
            part = values.select(axis, channel)
            assert (float(low[channel]), float(high[channel])) == (float(part.min()), float(part.max()))


@AXES
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_never_loses_in_any_channel(axis: int | None, bits: int, symmetric: bool):
    qtype = QType(bits, symmetric=symmetric, narrow=symmetric, axis=axis)
    for seed in range(3):
        searched, full = errors(weight(seed), qtype, True), errors(weight(seed), qtype, False)
        assert bool((searched <= full).all())


def test_the_search_gains_at_four_bits():
    # the least-error 4-bit grid of a normal distribution ends near 2.6 sigma; the extreme of 1,000 values is near 3.3
    qtype, values = QType(4, narrow=True, axis=0), torch.randn((8, 1000), generator=torch.Generator().manual_seed(0))
    assert float(errors(values, qtype, True).sum()) < 0.9 * float(errors(values, qtype, False).sum())


def test_without_search_the_extremes_are_on_the_grid():
    grid = weight_qparams(weight(), QType(8, narrow=True, axis=0))
    reach = weight().abs().amax((1, 2, 3))
    assert torch.allclose(grid.scale[reach > 0], reach[reach > 0] / 127)
    assert float(grid.scale[2]) == 1.0  # the channel of zeros


def test_the_weight_is_not_changed():
    values = weight().requires_grad_()
    before = values.detach().clone()
    assert not weight_qparams(values, QType(8, axis=0), search=True).scale.requires_grad
    assert torch.equal(values, before)
