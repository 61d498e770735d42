"""One option for each layer, so that the losses' sum is least and the costs' sum stays within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

RANGE = 1e3  # the least loss after scaling: the solver's own gap is 1e-6
ROUNDS = 6
CUTS = 8  # solutions over the budget that are forbidden one by one, before the budget is tightened
TOLERANCE = 1e-6  # of the solver: by so much its solutions may exceed a constraint
SLACK = 1e-9  # of the budget: sums of floats in another order


def allocate(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> tuple[int, ...]:
    """Return which option each layer takes: the exact optimum, by integer programming (HiGHS branch and bound).

    A multiple-choice knapsack: minimise the sum of losses where each layer takes one option and the sum of costs is at
    most the budget (Yao et al., "HAWQ-V3", ICML 2021, equation 8). Losses are scaled to the optimum found and the
    options that alone exceed it are left out, until the scale stays, so that small differences decide too.

    Args:
        costs: for each layer one cost per option, at least 0.
        losses: likewise.
        budget: unit of the costs.

    Returns:
        Index of the option for each layer.

    Raises:
        ValueError: a layer has no option, numbers do not match or are not finite, or even the cheapest options exceed
            the budget.
    """
    _check(costs, losses)
    limit = budget * (1 + SLACK) if budget > 0 else budget
    if sum(min(row) for row in costs) > limit:
        raise ValueError(f"the cheapest options cost {sum(min(row) for row in costs):g}, more than {budget:g}")
    extra = [[loss - min(row) for loss in row] for row in losses]
    kept = [_undominated(c, e) for c, e in zip(costs, extra, strict=True)]
    bound, best = math.inf, tuple(min(row, key=costs[i].__getitem__) for i, row in enumerate(kept))
    for _ in range(ROUNDS):
        total = _total(extra, best)
        if total == 0 or total >= bound * 0.5:
            break
        bound = total
        kept = [[o for o in row if extra[i][o] <= bound] for i, row in enumerate(kept)]
        found = _solve(costs, extra, kept, limit, bound)
        if _total(extra, found) <= total:
            best = found
    return best


def _solve(
    costs: Sequence[Sequence[float]],
    losses: Sequence[Sequence[float]],
    kept: list[list[int]],
    limit: float,
    bound: float,
) -> tuple[int, ...]:
    """Solve the programme over the kept options, until its solution holds the budget in exact sums too."""
    options = [(i, o) for i, row in enumerate(kept) for o in row]
    of_layer = np.zeros((len(kept), len(options)))
    of_layer[[i for i, _ in options], range(len(options))] = 1
    spent = np.array([costs[i][o] for i, o in options])
    unit = float(spent.max()) or 1.0
    target = np.array([losses[i][o] / bound * RANGE for i, o in options])  # in this order none overflows
    rules = [LinearConstraint(of_layer, 1, 1)]
    allowed = limit
    while True:
        within = LinearConstraint(spent[None] / unit, ub=allowed / unit)
        result = milp(
            target,
            integrality=np.ones(len(options)),
            bounds=Bounds(0, 1),
            constraints=[*rules, within],
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:  # what fits does so only within the solver's tolerance
            return tuple(min(row, key=costs[i].__getitem__) for i, row in enumerate(kept))
        taken = np.flatnonzero(result.x > 0.5)
        if sum(costs[i][o] for i, o in (options[k] for k in taken)) <= limit:
            return tuple(options[k][1] for k in taken)
        if len(rules) > CUTS:
            allowed -= TOLERANCE * unit
        not_this = np.zeros((1, len(options)))
        not_this[0, taken] = 1
        rules.append(LinearConstraint(not_this, ub=len(kept) - 1))


def _undominated(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Return the options that no other one beats in cost and loss."""
    order = sorted(range(len(costs)), key=lambda o: (costs[o], losses[o], o))
    kept: list[int] = []
    for option in order:
        if not kept or losses[option] < losses[kept[-1]]:
            kept.append(option)
    return kept


def _total(values: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    return math.fsum(row[option] for row, option in zip(values, chosen, strict=True))


def _check(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> None:
    if len(costs) != len(losses) or any(len(c) != len(e) or not c for c, e in zip(costs, losses, strict=True)):
        raise ValueError("each layer needs one cost and one loss for each of its options")
    if not all(math.isfinite(v) for rows in (costs, losses) for row in rows for v in row):
        raise ValueError("a cost or a loss is not finite")
    if any(v < 0 for row in costs for v in row):
        raise ValueError("a cost is negative")
