import numpy as np
import pytest
import torch

from core.decomposition.kernels import random
from microtome.core.decomposition.least_squares import Regression

HELD = 1e-4  # inputs as far from zero as these are held by a millionth of their square


def regression(x: torch.Tensor, y: torch.Tensor, parts: int = 3) -> Regression:
    found = Regression()
    for some, other in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found.update(some, other)
    return found


def test_without_damping_it_is_numpys_least_squares():
    x, y = random(60, 4) + 3, random(60, 3, seed=1) - 5
    weight, intercept = regression(x, y).solve(torch.zeros(3, 4), 0.0)
    with_one = np.concatenate([x.numpy(), np.ones((60, 1))], 1)
    expected = np.linalg.lstsq(with_one, y.numpy(), rcond=None)[0].T
    assert np.allclose(weight, expected[:, :4], atol=HELD)
    assert np.allclose(intercept, expected[:, 4], atol=4 * HELD)


def test_the_mean_is_met_whatever_the_damping():
    x, y, start = random(60, 4) + 3, random(60, 3, seed=1) - 5, random(3, 4, seed=2)
    for damping in (0.0, 1.0, 1e9):
        weight, intercept = regression(x, y).solve(start, damping)
        assert torch.allclose(x.mean(0) @ weight.T + intercept, y.mean(0))
    assert torch.allclose(weight, start, atol=1e-6)


def test_what_samples_do_not_say_stays():
    x = torch.cat([random(20, 1), torch.zeros(20, 1, dtype=torch.float64)], 1)
    weight, _ = regression(x, 7 * x[:, :1]).solve(torch.tensor([[1.0, 42.0]]), 1e-9)
    assert weight.tolist()[0] == pytest.approx([7.0, 42.0])
    still = torch.full((20, 2), 3.0) + 1e-7 * torch.rand((20, 2), generator=torch.Generator().manual_seed(0))
    weight, _ = regression(still, random(20, 1)).solve(torch.tensor([[1.0, 42.0]]), 1e-9)
    assert weight.tolist()[0] == pytest.approx([1.0, 42.0], abs=0.1)
