import itertools

import pytest
import torch
from torch import Tensor

from microtome.core.gptq_rounding import round_columns

LIMITS = (-3, 3)


def problem(rows: int = 3, columns: int = 4, seed: int = 0, samples: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight (rows, columns), correlated inputs (samples, columns), and the rows' scales."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn((columns, columns), generator=generator, dtype=torch.float64)
    inputs = torch.randn((samples, columns), generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn((rows, columns), generator=generator, dtype=torch.float64)
    return weight, inputs, weight.abs().amax(1) / LIMITS[1]


def rounded(weight: Tensor, inputs: Tensor, scale: Tensor, **settings: object) -> Tensor:
    settings = {"damping": 0.0, "by_size": False, **settings}
    integers = round_columns(
        weight[None],
        (inputs.T @ inputs)[None],
        scale=scale[None],
        zero_point=torch.zeros_like(scale)[None],
        limits=LIMITS,
        **settings,
    )
    return integers[0] * scale[:, None]


def nearest(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / scale[:, None]).round().clamp(*LIMITS) * scale[:, None]


def error(weight: Tensor, other: Tensor, inputs: Tensor) -> Tensor:
    """Squared error of each row's output."""
    return (inputs @ (weight - other).T).square().sum(0)


def by_least_squares(weight: Tensor, inputs: Tensor, scale: Tensor) -> Tensor:
    """Brain surgery by its definition: round a column, then solve anew for all columns that are still free."""
    current, result = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        result[:, j] = (current[:, j] / scale).round().clamp(*LIMITS) * scale
        free = inputs[:, j + 1 :]
        target = inputs @ weight.T - inputs[:, : j + 1] @ result[:, : j + 1].T
        if free.shape[1]:
            current[:, j + 1 :] = torch.linalg.lstsq(free, target).solution.T
    return result


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 3, 128])
def test_it_is_brain_surgery_column_by_column(seed: int, block: int):
    weight, inputs, scale = problem(columns=7, seed=seed)
    assert torch.allclose(rounded(weight, inputs, scale, block=block), by_least_squares(weight, inputs, scale))


@pytest.mark.parametrize("seed", range(5))
def test_it_lies_between_the_nearest_and_the_best_of_all(seed: int):
    weight, inputs, scale = problem(rows=1, seed=seed)
    grid = range(LIMITS[0], LIMITS[1] + 1)
    everything = torch.tensor(list(itertools.product(grid, repeat=4)), dtype=torch.float64) * scale
    best = (inputs @ (weight - everything).T).square().sum(0).min()
    ours = error(weight, rounded(weight, inputs, scale), inputs)
    assert float(ours) >= float(best) * (1 - 1e-9)
    assert float(ours) <= float(error(weight, nearest(weight, scale), inputs))


def test_the_order_by_size_is_a_permutation_of_columns():
    weight, inputs, scale = problem(columns=6)
    order = inputs.square().sum(0).argsort(descending=True)
    expected = torch.empty_like(weight)
    expected[:, order] = rounded(weight[:, order], inputs[:, order], scale)
    assert torch.allclose(rounded(weight, inputs, scale, by_size=True), expected)


def test_uncorrelated_inputs_leave_the_nearest():
    weight, _, scale = problem(columns=5)
    assert torch.allclose(rounded(weight, torch.eye(5, dtype=torch.float64), scale), nearest(weight, scale))


def test_inputs_that_are_always_zero_do_not_matter():
    weight, inputs, scale = problem(columns=6)
    inputs[:, 2] = 0
    keep = [0, 1, 3, 4, 5]
    ours = rounded(weight, inputs, scale, damping=0.01)
    assert torch.allclose(ours[:, 2], nearest(weight, scale)[:, 2])
    alone = rounded(weight[:, keep], inputs[:, keep], scale, damping=0.01)
    assert bool(torch.isfinite(ours).all())
    assert torch.allclose(ours[:, keep], alone)


def test_fewer_samples_than_columns_are_damped():
    weight, inputs, scale = problem(columns=12, samples=3)
    ours = rounded(weight, inputs, scale)
    assert bool(torch.isfinite(ours).all())
    assert float(error(weight, ours, inputs).sum()) < float(error(weight, nearest(weight, scale), inputs).sum())


def test_no_inputs_at_all_leave_the_nearest():
    weight, inputs, scale = problem()
    assert torch.allclose(rounded(weight, inputs * 0, scale), nearest(weight, scale))


def test_values_that_are_no_numbers_are_refused():
    weight, inputs, scale = problem()
    with pytest.raises(ValueError, match="NaN"):
        rounded(weight, inputs * float("nan"), scale)
