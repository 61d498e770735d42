"""Networks that a parent holds: what they are, what they cost, and which of them are worth looking at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.core import pareto
from microtome.graph.network import Network
from microtome.graph.structure.groups import ChannelGroup
from microtome.graph.structure.removal import keep_units
from microtome.graph.structure.widths import free_groups, importance, units_at
from microtome.graph.watching.macs import layer_sizes
from microtome.types import Array

CHILDREN = 128  # that the predictor looks at for each round of measurements
CHANGED = 0.125  # of the groups of a child, at least one


@dataclass(frozen=True)
class Choice:
    """One network of a space.

    Attributes:
        widths: share of the units that stay, for each group in the space's order.
    """

    widths: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """What a network costs: its weights, and the multiply-accumulates for one input of its own shape."""

    parameters: int
    macs: int


class Space:
    """All networks that widths of channel groups make of a parent.

    In each group those units stay that have the largest weights in the parent, so that narrower networks lie inside of
    wider ones.

    Attributes:
        parent: in float.
        groups: that can become narrower, in order.
        levels: widths to choose from, ascending; the last is 1.
        multiple: see `graph.structure.widths.units_at`.
    """

    def __init__(self, parent: Network, levels: Sequence[float], *, multiple: int = 1) -> None:
        """Look at the parent.

        Raises:
            OptionError: nothing of it can become narrower.
        """
        self.parent, self.multiple = parent, multiple
        self.groups: tuple[ChannelGroup, ...] = free_groups(parent)
        self.levels = tuple(sorted({*levels, 1.0}))
        self._order = [importance(parent, group) for group in self.groups]
        self._weights = {name: tuple(v.shape) for name, v in parent.constants().items() if parent.is_weight(name)}
        self._macs = [
            (str(layer.weight.target), size.macs)
            for layer, size in zip(parent.layers, layer_sizes(parent), strict=True)
        ]

    def uniform(self, level: float) -> Choice:
        """Return the network all of whose groups have the same width."""
        return Choice((level,) * len(self.groups))

    def kept(self, choice: Choice) -> dict[str, Tensor]:
        """Return the units that stay in each group that loses some, by its name."""
        return {
            group.name: units_at(group, width, order, multiple=self.multiple)
            for group, order, width in zip(self.groups, self._order, choice.widths, strict=True)
            if width < 1
        }

    def cut(self, choice: Choice, network: Network | None = None) -> Network:
        """Return a network of the space, with the parent's weights, or those of another network of the same graph."""
        return keep_units(network or self.parent, self.kept(choice))

    def cost(self, choice: Choice) -> Cost:
        """Return what a network costs, without making it."""
        kept = self.kept(choice)
        stays: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            units = kept.get(group.name)
            if units is None:
                continue
            for member in group.members:
                there = (member.units < 0) | torch.isin(member.units, units)
                key = (member.constant, member.axis)
                stays[key] = stays[key] & there if key in stays else there
        shares: dict[str, float] = {}
        for (name, _), there in stays.items():
            shares[name] = shares.get(name, 1.0) * float(there.float().mean())
        parameters = sum(torch.Size(shape).numel() * shares.get(name, 1.0) for name, shape in self._weights.items())
        macs = sum(count * shares.get(name, 1.0) for name, count in self._macs)
        return Cost(round(parameters), round(macs))


def mixed(space: Space, rng: np.random.Generator) -> Choice:
    """Draw a network: a width for all, from which each group departs by a level or two."""
    levels = len(space.levels)
    middle = rng.integers(levels)
    places = np.clip(middle + rng.integers(-2, 3, len(space.groups)), 0, levels - 1)
    return Choice(tuple(space.levels[place] for place in places))


def child(space: Space, parents: Sequence[Choice], rng: np.random.Generator) -> Choice:
    """Draw a child of two networks: each group from one of them, and about one in eight a level wider or narrower."""
    one, other = (parents[k].widths for k in rng.integers(len(parents), size=2))
    found = []
    for a, b in zip(one, other, strict=True):
        place = space.levels.index(a if rng.random() < 0.5 else b)
        if rng.random() < max(CHANGED, 1 / len(one)):
            place = int(np.clip(place + rng.choice((-1, 1)), 0, len(space.levels) - 1))
        found.append(space.levels[place])
    return Choice(tuple(found))


def proposed(
    space: Space, known: Sequence[Choice], objectives: Array, count: int, rng: np.random.Generator
) -> list[Choice]:
    """Return networks that are worth measuring: of many children of the best, those that are predicted to be best.

    Args:
        space: of the networks.
        known: those that were measured; at least one.
        objectives: what they came to, (known, objectives), all to be small.
        count: how many to return, at most; fewer where the space has no others.
        rng: what is drawn from.
    """
    parents = [known[k] for k in pareto.best(objectives, max(count, len(known) // 2))]
    drawn = dict.fromkeys(child(space, parents, rng) for _ in range(CHILDREN))
    children = [one for one in drawn if one not in set(known)]
    if not children:
        return []
    predicted = pareto.Predictor(_features(space, known), objectives)(_features(space, children))
    together = np.concatenate([objectives, predicted])
    ranked = [k - len(known) for k in pareto.best(together, len(together)) if k >= len(known)]
    return [children[k] for k in ranked[:count]]


def _features(space: Space, choices: Sequence[Choice]) -> Array:
    """Return what the predictor sees of networks: widths, and the logarithms of weights and multiplications."""
    costs = [space.cost(choice) for choice in choices]
    rows = [[*one.widths, math.log(c.parameters), math.log(c.macs)] for one, c in zip(choices, costs, strict=True)]
    return np.array(rows, float)
