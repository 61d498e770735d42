import pytest
import torch
from torch import Tensor

from microtome.core.affine import fake_quantize, qparams_from_range, real_range
from microtome.core.formats import MidRise
from microtome.core.range_search import weight_qparams
from microtome.graph.learning.learned_grids import BinaryWeight, ClippedGrid, LearnedGrid, MidRiseWeight, ObservedGrid
from microtome.types import QParams, QType

UNSIGNED4 = QType(4, signed=False, symmetric=False)
WEIGHT4 = QType(4, narrow=True, axis=0)


def grid(low: float, high: float, qtype: QType = UNSIGNED4) -> QParams:
    return qparams_from_range(torch.tensor(low), torch.tensor(high), qtype)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [LearnedGrid, ClippedGrid])
def test_an_untrained_grid_rounds_as_the_node_did(make):
    qparams, x = grid(-1.0, 2.0), values(2, 3, 8, 8)
    module = make(qparams)
    torch.testing.assert_close(module(x).detach(), fake_quantize(x, qparams))
    torch.testing.assert_close(module.grid().scale, qparams.scale)
    assert int(module.grid().zero_point) == int(qparams.zero_point)


def test_a_learned_grid_per_channel_rounds_as_the_node_did():
    weight = values(6, 4, 3, 3)
    qparams = weight_qparams(weight, WEIGHT4)
    module = LearnedGrid(qparams)
    torch.testing.assert_close(module(weight).detach(), fake_quantize(weight, qparams))
    torch.testing.assert_close(module.settled(weight), fake_quantize(weight, qparams))


def test_the_gradient_of_the_scale_is_that_of_lsq():
    # Esser et al., equation 3: round(v/s) - v/s inside the grid, the grid's end outside
    qparams = QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), QType(3, narrow=True))
    module, x = LearnedGrid(qparams), torch.tensor([[0.6, -0.2, 9.0, -9.0]])
    module(x).sum().backward()
    inside = (round(1.2) - 1.2) + (round(-0.4) + 0.4)
    factor = 1 / (4 * 3) ** 0.5
    expected = (inside + 3 - 3) * factor * 0.5  # by the logarithm: times the scale
    assert float(module.log_scale.grad) == pytest.approx(expected, rel=1e-4)


def test_values_inside_pass_their_gradient_and_clipped_ones_do_not():
    for make in (LearnedGrid, ClippedGrid, ObservedGrid):
        x = torch.tensor([[-5.0, -0.4, 0.3, 1.0, 9.0]], requires_grad=True)
        module = make(grid(-1.0, 2.0)).eval()
        module(x).sum().backward()
        assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]], make


def test_clipped_values_move_the_end_that_clips_them():
    # Choi et al., equation 3
    module = ClippedGrid(grid(-1.0, 2.0))
    module(torch.tensor([-5.0, 0.1, 9.0, 9.0])).sum().backward()
    assert float(module.low.grad) == 1.0
    assert float(module.high.grad) == 2.0


def test_an_observed_grid_follows_the_batches_and_then_stays():
    module = ObservedGrid(grid(-1.0, 1.0), momentum=0.5, until=2).train()
    for _ in range(2):
        module(torch.tensor([-1.0, 5.0]))
    assert float(module.high) == pytest.approx(4.0, abs=0.1)  # 1 → 3 → 4, give or take the zero point's rounding
    high = float(module.high)
    module(torch.tensor([-1.0, 100.0]))
    assert float(module.high) == high
    fresh = ObservedGrid(grid(-1.0, 1.0)).eval()
    before = float(fresh.high)
    fresh(torch.tensor([50.0]))
    assert float(fresh.high) == before


def test_binary_weights_are_their_mean_magnitude_with_their_sign():
    # Rastegari et al., equation 6
    weight = values(5, 3, 3, 3)
    module = BinaryWeight(weight_qparams(weight, QType(2, axis=0)))
    binary = module(weight)
    magnitude = weight.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(binary, torch.where(weight >= 0, 1.0, -1.0) * magnitude)
    settled = module.settled(weight)
    torch.testing.assert_close(settled, fake_quantize(settled, module.grid()))
    torch.testing.assert_close(settled, binary)


def test_a_transposed_convolution_is_binary_per_output_channel():
    weight = values(4, 6, 2, 2)
    module = BinaryWeight(weight_qparams(weight, QType(2, axis=1)))
    assert module.settled(weight).abs().amax((0, 2, 3)).tolist() == pytest.approx(weight.abs().mean((0, 2, 3)).tolist())


def test_a_width_can_come_down():
    weight = values(6, 4, 3, 3)
    module = LearnedGrid(weight_qparams(weight, QType(8, narrow=True, axis=0)))
    module.set_bits(2, weight)
    assert module.qtype == QType(2, narrow=False, axis=0)
    torch.testing.assert_close(module.grid().scale, weight_qparams(weight, module.qtype, search=True).scale)
    activation = LearnedGrid(grid(-1.0, 2.0, QType(8, signed=False, symmetric=False)))
    activation.set_bits(4)
    low, high = real_range(activation.grid())
    assert float(high - low) == pytest.approx(3.0, rel=0.02)


def mid_rise(weight: Tensor, axis: int = 0) -> MidRiseWeight:
    return MidRiseWeight(weight_qparams(weight, QType(2, axis=axis)), weight)


@pytest.mark.parametrize("axis", [0, 1])
def test_mid_rise_weights_start_as_their_format_has_them(axis: int):
    weight = values(5, 4, 3, 3)
    module, encoded = mid_rise(weight, axis), MidRise().encode(weight, axis)
    torch.testing.assert_close(module(weight).detach(), encoded.decode())
    settled = module.settled(weight)
    torch.testing.assert_close(settled, encoded.decode())
    torch.testing.assert_close(settled, fake_quantize(settled, module.grid()), rtol=0, atol=0)
    assert torch.equal(module.encoding().encode(settled).decode(), settled)


def test_gradients_of_mid_rise_weights_by_hand():
    # One channel with a step of 2: levels -3, -1, 1, 3, and what is beyond 3 is clipped.
    weight = torch.tensor([[0.5, -1.5, 2.5, -2.5, 9.0, -4.0]], requires_grad=True)
    module = mid_rise(torch.tensor([[3.0, -1.0, 1.0, -3.0]]))
    assert float(module.log_step.detach().exp()) == pytest.approx(2.0)
    made = module(weight)
    assert made.tolist() == [pytest.approx([1.0, -1.0, 3.0, -3.0, 3.0, -3.0])]
    (made * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])).sum().backward()
    assert weight.grad.tolist() == [pytest.approx([1.0, 2.0, 4.0, 8.0, 0.0, 0.0])]
    # Esser et al., equation 3: level - v/s inside, the level outside; in steps
    inside = 1 * (0.5 - 0.25) + 2 * (-0.5 + 0.75) + 4 * (1.5 - 1.25) + 8 * (-1.5 + 1.25)
    expected = (inside + 16 * 1.5 - 32 * 1.5) / (6 * 1.5) ** 0.5 * 2.0  # by the logarithm: times the step
    assert module.log_step.grad.tolist() == pytest.approx([expected], rel=1e-5)
