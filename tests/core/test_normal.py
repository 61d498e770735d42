import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microtome.core.normal import moments

# The trapezoidal rule over 12 deviations in steps of 0.012 misses a kink by at most 0.012² / 8 of a deviation.
RULE = 2e-5


def clipped(mean: float, deviation: float, low: float, high: float) -> tuple[float, float]:
    """Return mean and deviation of a normal variable clipped to [low, high]: Nagel et al., appendix C."""

    def density(z: float) -> float:
        return 0.0 if math.isinf(z) else math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    def share(z: float) -> float:
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    a, b = (low - mean) / deviation, (high - mean) / deviation
    inside = share(b) - share(a)
    above, below = (0.0 if math.isinf(high) else high), (0.0 if math.isinf(low) else low)
    first = deviation * (density(a) - density(b)) + mean * inside + below * share(a) + above * (1 - share(b))
    ends = (0.0 if math.isinf(a) else a * density(a)) - (0.0 if math.isinf(b) else b * density(b))
    square = (mean**2 + deviation**2) * inside + 2 * mean * deviation * (density(a) - density(b))
    square += deviation**2 * ends + below**2 * share(a) + above**2 * (1 - share(b))
    return first, math.sqrt(max(0.0, square - first**2))


@pytest.mark.parametrize("mean", [-2.0, -0.3, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("high", [math.inf, 6.0])
def test_clipped_normal_variables_are_those_of_the_closed_form(mean: float, deviation: float, high: float):
    found = moments(lambda x: x.clamp(0, high), torch.tensor([mean, 1.0]), torch.tensor([deviation, 1.0]))
    expected = clipped(mean, deviation, 0, high)
    assert float(found[0][0]) == pytest.approx(expected[0], abs=RULE * deviation)
    assert float(found[1][0]) == pytest.approx(expected[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("function", [functional.silu, functional.gelu, torch.sigmoid])
def test_other_functions_are_those_of_samples(function):
    def apply(x: Tensor) -> Tensor:
        return function(x)

    samples = apply(0.4 + 1.3 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)))
    mean, deviation = moments(apply, torch.tensor([0.4]), torch.tensor([1.3]))
    assert float(mean) == pytest.approx(float(samples.mean()), abs=5e-3)
    assert float(deviation) == pytest.approx(float(samples.std()), abs=5e-3)


def test_a_constant_stays_one():
    mean, deviation = moments(torch.relu, torch.tensor([2.0, -1.0]), torch.zeros(2))
    torch.testing.assert_close(mean, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(deviation, torch.zeros(2))
