"""Which units to remove, so that a share of a network's cost goes and the least importance is lost."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

HALVINGS = 12  # of the share: to a four-thousandth


@dataclass(frozen=True, eq=False)
class Pool:
    """The units of one group.

    Attributes:
        scores: of each unit, at least 0.
        parts: the units lie in so many equal consecutive stretches, and as many must go of each.
        step: what is kept shall be a multiple of so many units.
        least: units that stay.
        most: share of the units that may go.
    """

    scores: Tensor
    parts: int = 1
    step: int = 1
    least: int = 1
    most: float = 1.0

    def portions(self) -> list[list[int]]:
        """Return the units in the order in which they may go, in portions that leave an allowed number each."""
        count = len(self.scores)
        apart = self.scores.reshape(self.parts, -1)
        order = apart.argsort(dim=1, stable=True) + torch.arange(0, count, count // self.parts)[:, None]
        step = math.lcm(self.step, self.parts)
        floor = max(self.least, math.ceil(count * (1 - self.most) - 1e-9), 1)
        found, gone = [], 0
        for kept in range((count - 1) // step * step, 0, -step):
            if kept < floor:
                break
            found.append(order[:, gone // self.parts : (count - kept) // self.parts].flatten().tolist())
            gone = count - kept
        return found


class Price(Protocol):
    """What units cost, given all that has gone already."""

    @property
    def total(self) -> float:
        """What all that is left costs."""

    def saved(self, group: str, units: Sequence[int]) -> float:
        """What some further units of a group would save."""

    def remove(self, group: str, units: Sequence[int]) -> None:
        """Take them out."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a tensor along which a group's units lie: for each index the unit, -1 for none of the group."""

    tensor: str
    axis: int
    units: Tensor


class Sizes:
    """Sizes of tensors, each times a price: parameters at a price of 1, multiplications at one per output position."""

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], prices: Mapping[str, float], axes: Mapping[str, Sequence[Axis]]
    ) -> None:
        """Start with everything there.

        Args:
            shapes: of tensors by name.
            prices: of one element of each; tensors without one cost nothing.
            axes: where each group's units lie.
        """
        self._shapes = {name: list(shape) for name, shape in shapes.items() if prices.get(name)}
        self._prices = prices
        self._counts: dict[str, list[tuple[str, int, Tensor]]] = {}
        for group, held in axes.items():
            width = 1 + max((int(a.units.max()) for a in held if a.units.numel()), default=0)
            self._counts[group] = [
                (a.tensor, a.axis, torch.bincount(a.units[a.units >= 0], minlength=width))
                for a in held
                if a.tensor in self._shapes
            ]

    @property
    def total(self) -> float:
        """What all that is left costs."""
        return sum(self._prices[name] * math.prod(shape) for name, shape in self._shapes.items())

    def saved(self, group: str, units: Sequence[int]) -> float:
        """What some further units of a group would save."""
        after = self._after(group, units)
        return sum(self._prices[n] * (math.prod(self._shapes[n]) - math.prod(shape)) for n, shape in after.items())

    def remove(self, group: str, units: Sequence[int]) -> None:
        """Take them out."""
        self._shapes.update(self._after(group, units))

    def _after(self, group: str, units: Sequence[int]) -> dict[str, list[int]]:
        shapes: dict[str, list[int]] = {}
        gone = list(units)
        for name, axis, counts in self._counts[group]:
            shape = shapes.setdefault(name, list(self._shapes[name]))
            shape[axis] -= int(counts[gone].sum())
        return shapes


class PerUnit:
    """A price per unit that stays, such as measured milliseconds."""

    def __init__(self, total: float, prices: Mapping[str, float]) -> None:
        """Start with everything there; `prices` are those of one unit of each group."""
        self._total, self._prices = total, prices

    @property
    def total(self) -> float:
        """What all that is left costs."""
        return self._total

    def saved(self, group: str, units: Sequence[int]) -> float:
        """What some further units of a group would save."""
        return self._prices[group] * len(units)

    def remove(self, group: str, units: Sequence[int]) -> None:
        """Take them out."""
        self._total -= self.saved(group, units)


def remove_least(pools: Mapping[str, Pool], price: Price, goal: float) -> tuple[dict[str, list[int]], float]:
    """Remove portion after portion, always that of the least importance per cost saved, until `goal` is saved.

    A portion's importance is the sum of its units'. Costs are counted anew after each portion: where the readers of a
    layer become narrower, its own units become cheaper.

    Args:
        pools: of each group.
        price: is changed.
        goal: what shall be saved, in the price's unit.

    Returns:
        What went of each group, and what was saved in all: less than the goal where no more may go.
    """
    before = price.total
    waiting = {name: iter(pool.portions()) for name, pool in pools.items()}
    heap: list[tuple[float, int, str, list[int]]] = []
    places = {name: place for place, name in enumerate(pools)}

    def put(name: str, units: list[int] | None) -> None:
        if units is not None:
            saved = price.saved(name, units)
            cost = float(pools[name].scores[units].sum()) / saved if saved > 0 else math.inf
            heapq.heappush(heap, (cost, places[name], name, units))

    for name, portions in waiting.items():
        put(name, next(portions, None))
    gone: dict[str, list[int]] = {}
    while heap and before - price.total < goal:
        _, _, name, units = heapq.heappop(heap)
        saved = price.saved(name, units)
        if saved <= 0:
            continue
        cost = float(pools[name].scores[units].sum()) / saved
        if heap and cost > heap[0][0]:  # it saves less than when it was put there
            heapq.heappush(heap, (cost, places[name], name, units))
            continue
        price.remove(name, units)
        gone.setdefault(name, []).extend(units)
        put(name, next(waiting[name], None))
    return gone, before - price.total


def remove_evenly(
    pools: Mapping[str, Pool], price: Callable[[], Price], goal: float
) -> tuple[dict[str, list[int]], float]:
    """Remove the same share of every group's units, the smallest share that saves `goal`, as near as portions allow.

    Args:
        pools: of each group; those with the least scores go.
        price: makes prices with everything there.
        goal: what shall be saved, in the price's unit.

    Returns:
        What went of each group, and what was saved in all: less than the goal where no more may go.
    """

    def at(share: float) -> tuple[dict[str, list[int]], float]:
        left, gone = price(), {}
        before = left.total
        for name, pool in pools.items():
            taken = list[int]()
            for units in pool.portions():
                if len(taken) + len(units) / 2 > share * len(pool.scores):
                    break
                taken += units
            if taken:
                left.remove(name, taken)
                gone[name] = taken
        return gone, before - left.total

    best, low, high = at(1.0), 0.0, 1.0
    if best[1] < goal:
        return best
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = at(middle)
        if found[1] >= goal:
            best, high = found, middle
        else:
            low = middle
    return best
