import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core.affine import dequantize, fake_quantize, qparams_from_range, quantize, real_range
from microtome.types import QParams, QType

# A scale is a float32: the ends of the range are met to its rounding, 2^-24 of the range, times the few operations.
SCALE_ROUNDING = 1e-6

qtypes = st.builds(QType, bits=st.integers(1, 16), signed=st.booleans(), symmetric=st.booleans(), narrow=st.booleans())
ends = st.floats(0, 1e6, width=32).filter(lambda v: v == 0 or v > 1e-20)
ranges = st.tuples(ends, ends)


def params(low: float, high: float, qtype: QType) -> QParams:
    return qparams_from_range(torch.tensor(low), torch.tensor(high), qtype)


def test_three_quarters_in_eight_bits():
    grid = params(0.0, 1.0, QType(8, signed=False, symmetric=False))
    # scale 1/255, 0.75 * 255 = 191.25
    assert float(grid.scale) == pytest.approx(1 / 255, rel=SCALE_ROUNDING)
    assert int(grid.zero_point) == 0
    assert int(quantize(torch.tensor(0.75), grid)) == 191
    assert float(fake_quantize(torch.tensor(0.75), grid)) == pytest.approx(191 / 255, rel=SCALE_ROUNDING)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("narrow", [False, True])
def test_symmetric_scale_is_the_largest_magnitude_over_qmax(bits: int, narrow: bool):
    grid = params(-3.0, 2.0, QType(bits, narrow=narrow))
    assert float(grid.scale) == pytest.approx(3.0 / (2 ** (bits - 1) - 1), rel=SCALE_ROUNDING)
    assert int(grid.zero_point) == 0


@pytest.mark.parametrize(("low", "high", "zero_point"), [(-1.0, 3.0, 64), (-3.0, 1.0, 191), (-2.0, 0.0, 255)])
def test_asymmetric_zero_point_is_minus_low_over_scale(low: float, high: float, zero_point: int):
    # scale 4/255: 1 / scale = 63.75 → 64, 3 / scale = 191.25 → 191
    assert int(params(low, high, QType(8, signed=False, symmetric=False)).zero_point) == zero_point


def test_asymmetric_signed_zero_point_starts_at_qmin():
    assert int(params(-1.0, 3.0, QType(8, symmetric=False)).zero_point) == -128 + 64


def test_unsigned_symmetric_zero_point_is_the_middle():
    grid = params(-2.0, 1.0, QType(8, signed=False))
    assert int(grid.zero_point) == 128
    assert float(grid.scale) == pytest.approx(2 / 127, rel=SCALE_ROUNDING)


@pytest.mark.parametrize(("low", "high"), [(1.0, 3.0), (-3.0, -1.0)])
def test_a_range_without_zero_is_widened_to_zero(low: float, high: float):
    grid = params(low, high, QType(8, signed=False, symmetric=False))
    ends = [float(end) for end in real_range(grid)]
    assert ends == pytest.approx([min(low, 0.0), max(high, 0.0)], rel=SCALE_ROUNDING)


@given(ranges, qtypes)
@settings(max_examples=200, deadline=None)
def test_zero_is_on_every_grid(span: tuple[float, float], qtype: QType):
    grid = params(-span[0], span[1], qtype)
    assert float(fake_quantize(torch.tensor(0.0), grid)) == 0.0
    assert qtype.qmin <= int(grid.zero_point) <= qtype.qmax


@given(ranges, qtypes)
@settings(max_examples=200, deadline=None)
def test_every_integer_of_the_grid_survives_the_round_trip(span: tuple[float, float], qtype: QType):
    grid = params(-span[0], span[1], qtype)
    integers = torch.arange(qtype.qmin, qtype.qmax + 1, dtype=torch.int32)
    assert torch.equal(quantize(dequantize(integers, grid), grid), integers)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow"), list(itertools.product(range(1, 17), [False, True], [False, True]))
)
def test_every_integer_survives_for_every_format(bits: int, signed: bool, narrow: bool):
    for symmetric in (False, True):
        qtype = QType(bits, signed, symmetric, narrow)
        grid = params(-1.7, 2.9, qtype)
        integers = torch.arange(qtype.qmin, qtype.qmax + 1, dtype=torch.int32)
        assert torch.equal(quantize(dequantize(integers, grid), grid), integers)


@given(ranges, qtypes.filter(lambda q: q.bits > 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_values_inside_the_range_move_by_half_a_step_at_most(span: tuple[float, float], qtype: QType, share: float):
    grid = params(-span[0], span[1], qtype)
    low, high = (float(end) for end in real_range(grid))
    value = torch.tensor(low + share * (high - low))
    # the value itself is a float32 of up to 65,535 steps: its rounding is 65,535 / 2^24 steps
    assert float((fake_quantize(value, grid) - value).abs()) <= float(grid.scale) * (0.5 + 0.01)


@given(ranges, qtypes, st.floats(-1e7, 1e7, width=32))
@settings(max_examples=100, deadline=None)
def test_fake_quantize_is_idempotent_and_stays_on_the_grid(span: tuple[float, float], qtype: QType, value: float):
    grid = params(-span[0], span[1], qtype)
    once = fake_quantize(torch.tensor(value), grid)
    assert torch.equal(fake_quantize(once, grid), once)
    low, high = real_range(grid)
    assert low <= once <= high


def test_agrees_with_torch_fake_quantize():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    grid = params(-1.0, 2.0, QType(8, signed=False, symmetric=False))
    theirs = torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), 0, 255)
    assert torch.equal(fake_quantize(x, grid), theirs)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_grid_per_channel_agrees_with_torch(axis: int):
    x = torch.randn((3, 4, 5), generator=torch.Generator().manual_seed(0))
    reach = x.abs().amax([d for d in range(3) if d != axis])
    grid = qparams_from_range(-reach, reach, QType(8, narrow=True, axis=axis))
    theirs = torch.fake_quantize_per_channel_affine(x, grid.scale, grid.zero_point, axis, -127, 127)
    # torch multiplies by 1/scale, we divide: a value on the edge between two integers may go either way
    assert float((fake_quantize(x, grid) - theirs).abs().max()) <= float(grid.scale.max()) * 1.001
    assert torch.equal(fake_quantize(x, grid).amax(), theirs.amax())


def test_ties_go_to_the_even_integer():
    grid = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), QType(8))
    assert quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), grid).tolist() == [0, 2, 2, 0, -2]


def test_values_beyond_the_grid_saturate():
    grid = params(-1.0, 1.0, QType(4))
    assert quantize(torch.tensor([-9.0, 9.0]), grid).tolist() == [-8, 7]


def test_a_range_of_zero_width_gets_scale_one():
    assert float(params(0.0, 0.0, QType(8)).scale) == 1.0


def test_a_channel_of_zeros_beside_others():
    grid = qparams_from_range(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0]), QType(8, axis=0))
    assert grid.scale.tolist() == pytest.approx([1.0, 1 / 127], rel=SCALE_ROUNDING)


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 1.0), (0.0, float("inf")), (float("-inf"), 0.0), (1.0, -1.0)])
def test_what_is_no_range_is_refused(low: float, high: float):
    with pytest.raises(ValueError, match="not a range"):
        params(low, high, QType(8))


def test_bits_beyond_sixteen_are_refused():
    for bits in (0, 17):
        with pytest.raises(ValueError, match="1 to 16"):
            QType(bits)
