import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.core.attention_formats import (
    MOST_DOUBLINGS,
    LogGrid,
    UnevenSearch,
    fake_quantize_log,
    fake_quantize_twin,
    fake_quantize_uneven,
    twin_grid,
    uneven_grids,
)
from microtome.core.observers import make_observer
from microtome.types import QType

# float32: log2, a multiplication and exp2 are each wrong in the last bit
ROUNDING = 1e-6


def attention_like(rows: int = 64, tokens: int = 196, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (spread * torch.randn((rows, tokens), generator=generator)).softmax(1)


def uniform(values: Tensor, bits: int, *, symmetric: bool = False) -> Tensor:
    """Round to the uniform grid of least squared error."""
    observer, qtype = make_observer("mse"), QType(bits, signed=symmetric, symmetric=symmetric)
    observer.update(values)
    low, high = observer.range(qtype)
    return fake_quantize(values, qparams_from_range(torch.tensor(low), torch.tensor(high), qtype))


def noise(values: Tensor, rounded: Tensor) -> float:
    return float((values - rounded).square().mean())


def test_base_two_worked_by_hand():
    values = torch.tensor([1.0, 0.7, 0.5, 0.36, 0.35, 0.13, 2.0**-14, 2.0**-15, 0.0, 3.0])
    # 0.36 lies above 2^-1.5 = 0.3536, and 0.35 below; the fifteen exponents are 0 to 14, the last code is zero
    expected = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.25, 0.125, 2.0**-14, 0.0, 0.0, 1.0])
    assert fake_quantize_log(values, LogGrid(4)).tolist() == expected.tolist()


def test_base_root_two_worked_by_hand():
    values = torch.tensor([1.0, 0.7, 0.6, 0.36, 0.25, 2.0**-8, 2.0**-9, 0.0])
    # with offset 2 the largest value is 1/2, the smallest 2^-8
    expected = torch.tensor([0.5, 0.5, 0.5, math.sqrt(0.125), 0.25, 2.0**-8, 0.0, 0.0])
    assert torch.allclose(fake_quantize_log(values, LogGrid(4, 2, 2)), expected, rtol=ROUNDING, atol=0)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 12))
def test_every_value_of_a_logarithmic_grid_stays(bits: int, steps: int, offset: int):
    grid = LogGrid(bits, steps, offset)
    values = torch.cat([torch.zeros(1), (-torch.arange(offset, grid.last + 1) / steps).exp2()])
    assert len(values) <= 1 << bits
    once = fake_quantize_log(values, grid)
    assert torch.allclose(once, values, rtol=ROUNDING, atol=0)
    assert torch.equal(fake_quantize_log(once, grid), once)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_a_logarithmic_grid_is_never_further_off_than_half_a_step(bits: int, steps: int, values: list[float]):
    grid, real = LogGrid(bits, steps), torch.tensor(values)
    rounded = fake_quantize_log(real, grid)
    smallest = 2.0 ** (-grid.last / steps)
    inside = real >= smallest
    ratio = (rounded / real)[inside].log2().abs()
    assert bool((ratio <= 0.5 / steps + 1e-4).all())
    assert bool((rounded[~inside] <= smallest * (1 + ROUNDING)).all())


def test_twin_grids_worked_by_hand():
    grid = twin_grid("softmax", 4, 2)  # three bits each: 0 to 7 times 1/7, and 0 to 7 times 1/28
    values = torch.tensor([0.0, 0.05, 0.24, 8 / 28, 0.55, 1.0])
    expected = torch.tensor([0.0, 1 / 28, 7 / 28, 2 / 7, 4 / 7, 1.0])
    assert torch.allclose(fake_quantize_twin(values, grid), expected, rtol=ROUNDING, atol=ROUNDING)
    grid = twin_grid("gelu", 3, 3)  # two bits each: -0.1701 to 0 in thirds, and 0 to 3 times eight thirds of it
    values = torch.tensor([-0.17, -0.1, 0.0, 0.2, 0.5, 9.0])
    third = 0.1701 / 3
    expected = torch.tensor([-3 * third, -2 * third, 0.0, 0.0, 8 * third, 24 * third])
    assert torch.allclose(fake_quantize_twin(values, grid), expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["softmax", "gelu"])
@pytest.mark.parametrize("bits", range(3, 10))
@pytest.mark.parametrize("doublings", [0, 1, 5, MOST_DOUBLINGS])
def test_a_twin_grid_is_idempotent_and_bounded(kind: str, bits: int, doublings: int):
    grid = twin_grid(kind, bits, doublings)
    low, high = (0.0, 1.0) if kind == "softmax" else (-0.17, float(grid.above.scale) * grid.above.qtype.qmax)
    real = torch.linspace(low, high, 4001)
    rounded = fake_quantize_twin(real, grid)
    assert torch.equal(fake_quantize_twin(rounded, grid), rounded)
    coarse, fine = float(grid.above.scale), float(grid.below.scale)
    error = (rounded - real).abs()
    assert float(error.max()) <= 0.5 * coarse * (1 + 1e-4)
    # the last half step below the border saturates
    small = real < grid.border - 0.5 * fine
    assert float(error[small].max()) <= 0.5 * fine * (1 + 1e-4)
    assert rounded.unique().numel() <= 1 << bits


def best_noise(kind: str, bits: int, values: Tensor) -> float:
    search = UnevenSearch(uneven_grids(kind, bits))
    search.update(values)
    return noise(values, fake_quantize_uneven(values, search.best))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_twin_grids_are_better_than_uniform_ones_on_softmax(bits: int):
    values = attention_like()
    assert best_noise("twin_softmax", bits, values) < 0.7 * noise(values, uniform(values, bits))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_twin_grids_are_better_than_symmetric_uniform_ones_on_gelu(bits: int):
    # as PTQ4ViT compares; most units of a trained network are off, which is where GELU is negative
    off = torch.randn((64, 128), generator=torch.Generator().manual_seed(1)) - 1
    values = functional.gelu(2 * off)
    assert best_noise("twin_gelu", bits, values) < 0.8 * noise(values, uniform(values, bits, symmetric=True))


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_base_root_two_of_four_bits_is_better_than_uniform(spread: float):
    values = attention_like(spread=spread)
    assert best_noise("logsqrt2", 4, values) < 0.5 * noise(values, uniform(values, 4))


def test_base_two_of_three_bits_is_better_than_uniform():
    values = attention_like()
    assert best_noise("log2", 3, values) < 0.5 * noise(values, uniform(values, 3))


@pytest.mark.parametrize("kind", ["log2", "logsqrt2", "twin_softmax", "twin_gelu"])
def test_the_search_keeps_the_least_error_and_streams(kind: str):
    values = attention_like()
    whole, parts = UnevenSearch(uneven_grids(kind, 6)), UnevenSearch(uneven_grids(kind, 6))
    whole.update(values)
    for part in values.split(16):
        parts.update(part)
    assert torch.allclose(whole.errors, parts.errors, rtol=1e-5)
    best = noise(values, fake_quantize_uneven(values, whole.best))
    assert best == min(noise(values, fake_quantize_uneven(values, grid)) for grid in whole.grids)


def test_what_is_no_grid_is_refused():
    with pytest.raises(ValueError, match="9 bits"):
        LogGrid(9)
    with pytest.raises(ValueError, match="2 bits"):
        twin_grid("softmax", 2, 0)
    with pytest.raises(ValueError, match="NaN"):
        UnevenSearch(uneven_grids("twin_gelu", 8)).update(torch.tensor([math.nan]))
