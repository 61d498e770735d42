"""Networks that a parent holds: what they are, what they cost, and which of them are worth looking at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.core import pareto
from microtome.graph.network import Network
from microtome.graph.structure.groups import ChannelGroup
from microtome.graph.structure.kernels import large_kernels, without_borders
from microtome.graph.structure.removal import keep_units
from microtome.graph.structure.residuals import Block, removable_blocks, remove_blocks
from microtome.graph.structure.resolution import at_resolution
from microtome.graph.structure.widths import free_groups, importance, units_at
from microtome.graph.watching.macs import layer_sizes
from microtome.types import Array

CHILDREN = 128  # that the predictor looks at for each round of measurements
CHANGED = 0.125  # of the groups of a child, at least one

Row = dict[str, Any]
"""What was measured of a network: `score`, high is good; `cost` and `bytes`, low is good; and whatever else."""


@dataclass(frozen=True)
class Choice:
    """One network of a space.

    Attributes:
        widths: share of the units that stay, for each group of the parent in the space's order.
        removed: names of blocks that are taken out.
        kernels: names of layers whose kernels lose their border, so that 3×3 is 1×1.
        resolution: at which it looks at its first input, a share of the size.
    """

    widths: tuple[float, ...]
    removed: frozenset[str] = frozenset()
    kernels: frozenset[str] = frozenset()
    resolution: float = 1.0


@dataclass(frozen=True)
class Cost:
    """What a network costs: its weights, and the multiply-accumulates for one input of its own shape."""

    parameters: int
    macs: int


@dataclass(frozen=True, eq=False)
class _Variant:
    """The parent without some blocks at a resolution: its groups, which of the parent's each is, and costs.

    Attributes:
        groups: that can become narrower.
        places: of each of them among the parent's.
        orders: importance of their units.
        weights: number of values of each constant that counts as one.
        macs: weight's name, and multiply-accumulates, of each layer.
        kernels: for layers whose kernels can lose their border: weight's name, and the share of the taps that is left.
    """

    groups: tuple[ChannelGroup, ...]
    places: tuple[int, ...]
    orders: tuple[Tensor, ...]
    weights: Mapping[str, int]
    macs: tuple[tuple[str, int], ...]
    kernels: Mapping[str, tuple[str, float]]


class Space:
    """All networks that widths of channel groups, blocks, kernels and resolutions make of a parent.

    In each group those units stay that have the largest weights in the parent, so that narrower networks lie inside of
    wider ones.

    Attributes:
        parent: in float.
        groups: that can become narrower, in order.
        blocks: names of those that can be taken out.
        kernels: names of layers whose kernels can lose their border.
        resolutions: to choose from, ascending; the last is 1.
        levels: widths to choose from, ascending; the last is 1.
        multiple: see `graph.structure.widths.units_at`.
    """

    def __init__(
        self,
        parent: Network,
        levels: Sequence[float],
        *,
        multiple: int = 1,
        depth: bool = False,
        kernels: bool = False,
        resolutions: Sequence[float] = (),
    ) -> None:
        """Look at the parent; without `depth` no block is taken out, without `kernels` all keep their size.

        Raises:
            OptionError: nothing of it can become narrower, or it does not run at one of the resolutions.
        """
        self.parent, self.multiple = parent, multiple
        self.groups: tuple[ChannelGroup, ...] = free_groups(parent)
        self.levels = tuple(sorted({*levels, 1.0}))
        self.blocks = _apart(removable_blocks(parent)) if depth else ()
        self.kernels = large_kernels(parent) if kernels else ()
        self.resolutions = tuple(sorted({*resolutions, 1.0}))
        self._place = {layer: place for place, group in enumerate(self.groups) for layer in group.layers}
        self._variants: dict[tuple[frozenset[str], float], _Variant] = {}
        for scale in self.resolutions:
            at_resolution(parent, scale)

    def uniform(self, level: float) -> Choice:
        """Return the network all of whose groups have the same width."""
        return Choice((level,) * len(self.groups))

    def kept(self, choice: Choice) -> dict[str, Tensor]:
        """Return the units that stay in each group that loses some, by its name in the network without the blocks."""
        variant = self._variant(choice.removed, 1.0)
        return {
            group.name: units_at(group, choice.widths[place], order, multiple=self.multiple)
            for group, place, order in zip(variant.groups, variant.places, variant.orders, strict=True)
            if choice.widths[place] < 1
        }

    def cut(self, choice: Choice, network: Network | None = None) -> Network:
        """Return a network of the space, with the parent's weights, or those of another network of the same graph."""
        network = network or self.parent
        if choice.removed:
            network = remove_blocks(network, sorted(choice.removed))
        if choice.kernels:
            network = without_borders(network, choice.kernels)
        return at_resolution(keep_units(network, self.kept(choice)), choice.resolution)

    def cost(self, choice: Choice) -> Cost:
        """Return what a network costs, without making it."""
        variant, kept = self._variant(choice.removed, choice.resolution), self.kept(choice)
        stays: dict[tuple[str, int], Tensor] = {}
        for group in variant.groups:
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
        for name, share in (variant.kernels[layer] for layer in choice.kernels if layer in variant.kernels):
            shares[name] = shares.get(name, 1.0) * share
        parameters = sum(count * shares.get(name, 1.0) for name, count in variant.weights.items())
        return Cost(round(parameters), round(sum(count * shares.get(name, 1.0) for name, count in variant.macs)))

    def _variant(self, removed: frozenset[str], resolution: float) -> _Variant:
        """Return what is known of the parent without some blocks."""
        if (removed, resolution) not in self._variants:
            network = remove_blocks(self.parent, sorted(removed)) if removed else self.parent
            known = free_groups(network) if removed else self.groups
            groups = tuple(group for group in known if any(layer in self._place for layer in group.layers))
            places = (next(self._place[layer] for layer in group.layers if layer in self._place) for group in groups)
            seen = at_resolution(network, resolution)
            sizes = zip(seen.layers, layer_sizes(seen), strict=True)
            self._variants[removed, resolution] = _Variant(
                groups,
                tuple(places),
                tuple(importance(network, group) for group in groups),
                {name: value.numel() for name, value in network.constants().items() if network.is_weight(name)},
                tuple((str(layer.weight.target), size.macs) for layer, size in sizes),
                self._taps_left(network),
            )
        return self._variants[removed, resolution]

    def _taps_left(self, network: Network) -> dict[str, tuple[str, float]]:
        """Return weight's name and share of taps left for the layers whose kernels can lose their border."""
        bare = without_borders(network, self.kernels) if self.kernels else network
        pairs = (
            (one, network.tensor(str(one.weight.target)), bare.tensor(str(one.weight.target)))
            for one in network.layers
            if one.name in self.kernels
        )
        return {one.name: (str(one.weight.target), after.numel() / before.numel()) for one, before, after in pairs}


def mixed(space: Space, rng: np.random.Generator) -> Choice:
    """Draw a network: a width for all, from which each group departs by a level or two; few blocks and borders go."""
    levels = len(space.levels)
    middle = rng.integers(levels)
    places = np.clip(middle + rng.integers(-2, 3, len(space.groups)), 0, levels - 1)
    removed = frozenset(name for name in space.blocks if rng.random() < CHANGED)
    kernels = frozenset(name for name in space.kernels if rng.random() < CHANGED)
    resolution = space.resolutions[rng.integers(len(space.resolutions))]
    return Choice(tuple(space.levels[place] for place in places), removed, kernels, resolution)


def child(space: Space, parents: Sequence[Choice], rng: np.random.Generator) -> Choice:
    """Draw a child of two networks: each group, block and kernel from one of them; about one in eight changes."""
    one, other = (parents[k] for k in rng.integers(len(parents), size=2))
    chance = max(CHANGED, 1 / len(one.widths))
    found = []
    for a, b in zip(one.widths, other.widths, strict=True):
        place = space.levels.index(a if rng.random() < 0.5 else b)
        if rng.random() < chance:
            place = int(np.clip(place + rng.choice((-1, 1)), 0, len(space.levels) - 1))
        found.append(space.levels[place])
    removed, kernels = (
        frozenset(
            name
            for name in names
            if (name in getattr(one if rng.random() < 0.5 else other, kind)) != (rng.random() < chance)
        )
        for kind, names in (("removed", space.blocks), ("kernels", space.kernels))
    )
    resolution = (one if rng.random() < 0.5 else other).resolution
    if rng.random() < chance:
        resolution = space.resolutions[rng.integers(len(space.resolutions))]
    return Choice(tuple(found), removed, kernels, resolution)


def _apart(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the names of blocks that do not lie within one another, the smaller ones first."""
    taken: set[str] = set()
    found = []
    for block in sorted(blocks, key=lambda block: len(block.layers)):
        if not taken & set(block.layers):
            taken |= set(block.layers)
            found.append(block.name)
    return tuple(found)


def proposed(
    space: Space,
    known: Sequence[Choice],
    objectives: Array,
    count: int,
    rng: np.random.Generator,
    *,
    worst: float = math.inf,
) -> list[Choice]:
    """Return networks that are worth measuring: of many children of the best, those that are predicted to be best.

    Args:
        space: of the networks.
        known: those that were measured; at least one.
        objectives: what they came to, (known, objectives), all to be small.
        count: how many to return, at most; fewer where the space has no others.
        rng: what is drawn from.
        worst: of the first objective: what lies above it is no parent, and is measured only if all others do too. A
            network that cannot see is cheap, and would be on the front.
    """
    good = np.flatnonzero(objectives[:, 0] <= worst)
    if len(good) == 0:
        good = np.arange(len(known))
    parents = [known[good[k]] for k in pareto.best(objectives[good], max(count, len(known) // 2))]
    drawn = dict.fromkeys(child(space, parents, rng) for _ in range(CHILDREN))
    children = [one for one in drawn if one not in set(known)]
    if not children:
        return []
    predicted = pareto.Predictor(_features(space, known), objectives)(_features(space, children))
    together = np.concatenate([objectives, predicted])
    ranked = [k - len(known) for k in pareto.best(together, len(together)) if k >= len(known)]
    ranked.sort(key=lambda k: bool(predicted[k, 0] > worst))  # the rest keeps its order
    return [children[k] for k in ranked[:count]]


def _features(space: Space, choices: Sequence[Choice]) -> Array:
    """Return what the predictor sees of networks: choices, and the logarithms of weights and multiplications."""
    costs = [space.cost(choice) for choice in choices]
    rows = [
        [
            *one.widths,
            *(name in one.removed for name in space.blocks),
            *(name in one.kernels for name in space.kernels),
            one.resolution,
            math.log(c.parameters),
            math.log(c.macs),
        ]
        for one, c in zip(choices, costs, strict=True)
    ]
    return np.array(rows, float)


def chosen_row(rows: Sequence[Row], *, faster: float | None, smaller: float | None, loss: float) -> int:
    """Return the number of the network that is taken.

    Args:
        rows: measurements, the widest network first.
        faster: by which factor its cost must be below the widest network's; None does not ask.
        smaller: likewise its bytes.
        loss: where nothing is asked, how much of the widest network's score it may lose.

    Returns:
        The best by score of those that reach what is asked, or the nearest to that if none does; where nothing is
        asked, the one of least cost times bytes.
    """
    parent = rows[0]
    wanted = [(key, times) for key, times in (("cost", faster), ("bytes", smaller)) if times is not None]
    if wanted:
        reached = [min(parent[key] / row[key] / times for key, times in wanted) for row in rows]
        if max(reached) < 1:
            return int(np.argmax(reached))
        return max((k for k, share in enumerate(reached) if share >= 1), key=lambda k: float(rows[k]["score"]))
    good = [k for k, row in enumerate(rows) if row["score"] >= parent["score"] - loss]
    return min(good, key=lambda k: float(rows[k]["cost"] * rows[k]["bytes"]))
