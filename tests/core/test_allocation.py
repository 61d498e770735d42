import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microtome.core.allocation import allocate

SUMS = 1e-9  # of the optimum: the same floats in another order, and the solver's gap after scaling


def total(values: list[list[float]], chosen: tuple[int, ...]) -> float:
    return math.fsum(row[option] for row, option in zip(values, chosen, strict=True))


def best_of_all(costs: list[list[float]], losses: list[list[float]], budget: float) -> float:
    every = itertools.product(*(range(len(row)) for row in costs))
    return min(total(losses, chosen) for chosen in every if total(costs, chosen) <= budget * (1 + 1e-9))


@st.composite
def problems(draw: st.DrawFn, costs: st.SearchStrategy[float], losses: st.SearchStrategy[float]):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    spent = [draw(st.lists(costs, min_size=n, max_size=n)) for n in sizes]
    lost = [draw(st.lists(losses, min_size=n, max_size=n)) for n in sizes]
    low, high = sum(min(row) for row in spent), sum(max(row) for row in spent)
    return spent, lost, low + draw(st.floats(0, 1)) * (high - low)


def least(losses: list[list[float]]) -> float:
    return total(losses, tuple(row.index(min(row)) for row in losses))


def most_above_least(costs: list[list[float]], losses: list[list[float]], budget: float) -> float:
    """Return how far above `least` the best of all choices lies, and what floats may add to it."""
    best = best_of_all(costs, losses, budget)
    return (best - least(losses)) * (1 + SUMS) + 1e-12 * max(abs(v) for r in losses for v in r)


@settings(max_examples=60, deadline=None)
@given(problems(st.integers(0, 10**7), st.floats(0, 10)))
@example(([[0, 5], [1, 0]], [[0.0, 0.0], [0.0, 2.2e-309]], 0.5))  # a loss whose reciprocal overflows
def test_it_is_the_best_of_all_choices(problem):
    costs, losses, budget = problem
    chosen = allocate(costs, losses, budget)
    assert total(costs, chosen) <= budget * (1 + 1e-9)
    assert total(losses, chosen) - least(losses) <= most_above_least(costs, losses, budget)


@settings(max_examples=60, deadline=None)
@given(problems(st.floats(1e-3, 1e9), st.floats(-8, 2).map(lambda exponent: 10.0**exponent)))
def test_losses_and_costs_of_many_sizes(problem):
    costs, losses, budget = problem
    chosen = allocate(costs, losses, budget)
    assert total(costs, chosen) <= budget * (1 + 1e-9)
    assert total(losses, chosen) - least(losses) <= most_above_least(costs, losses, budget)


def test_by_hand():
    costs = [[8, 4, 2], [80, 40, 20]]
    losses = [[0.0, 0.1, 1.0], [0.0, 0.3, 0.5]]
    assert allocate(costs, losses, 88) == (0, 0)
    assert allocate(costs, losses, 48) == (0, 1)
    assert allocate(costs, losses, 47) == (1, 1)
    assert allocate(costs, losses, 28) == (0, 2)
    assert allocate(costs, losses, 22) == (2, 2)


def test_small_losses_decide_where_large_ones_do_not_matter():
    costs = [[8, 4, 2]] * 2
    losses = [[0.0, 2e-9, 1e3], [0.0, 1e-9, 1e3]]
    assert allocate(costs, losses, 12) == (0, 1)


def test_an_option_that_costs_more_and_loses_no_less_is_never_taken():
    assert allocate([[8, 4]], [[0.5, 0.5]], 100) == (1,)


@pytest.mark.parametrize(
    ("costs", "losses", "budget", "reason"),
    [
        ([[4, 8]], [[1, 0]], 3, "cheapest options cost 4"),
        ([[4, 8]], [[1]], 9, "one cost and one loss"),
        ([[]], [[]], 9, "one cost and one loss"),
        ([[1.0]], [[math.nan]], 9, "not finite"),
        ([[-1.0]], [[0]], 9, "negative"),
    ],
)
def test_what_cannot_be_solved_is_refused(costs, losses, budget, reason):
    with pytest.raises(ValueError, match=reason):
        allocate(costs, losses, budget)
