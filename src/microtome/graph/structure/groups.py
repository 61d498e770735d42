"""Channel groups: which rows and columns of all weights have to go together when a unit is removed.

Dependency analysis as in DepGraph (Fang et al., 2023, arXiv:2301.12900), but on the captured graph, where every value
is followed element by element, so that views, concatenations and attention need no rule of thumb.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.structure.following import mixing_rules, moving_rules, product_rules
from microtome.graph.structure.following.flow import Flow, Role, follow
from microtome.graph.structure.following.labels import NONE

RULES = {**mixing_rules.RULES, **moving_rules.RULES, **product_rules.RULES}
ATTENTION = frozenset({"matmul", "attention", "einsum"})


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of a constant along which a group's units lie.

    Attributes:
        constant: attribute name of the weight, bias, norm scale, running mean, ….
        axis: of it.
        units: int64, for each index of the axis the unit that it belongs to; -1 for none of this group.
        role: `writes` are the rows of a layer that make the units, `reads` the columns that read them, `scales` biases,
            norms, slopes and other constants that are added or multiplied.
    """

    constant: str
    axis: int
    units: Tensor
    role: Role


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units of which each can be removed alone, if they are no `parts`; all members lose it together.

    Attributes:
        name: of the first layer that writes its units; unique.
        kind: `channels`, or `heads` of an attention.
        units: how many there are.
        parts: units lie in so many equal consecutive stretches that must keep equally many; 1 where any may go.
        members: what is cut.
        layers: names of the layers that write it.
        reason: why nothing of it can be removed; None if it can.
    """

    name: str
    kind: Literal["channels", "heads"]
    units: int
    parts: int
    members: tuple[Member, ...]
    layers: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True, eq=False)
class Analysis:
    """Groups, and what was found out about every value.

    Attributes:
        flow: labels of values.
        groups: in the order of their first layers.
        group_of: for each label's representative the group that it is in, -1 for none.
        unit_of: likewise its number in that group.
    """

    flow: Flow
    groups: tuple[ChannelGroup, ...]
    group_of: Tensor
    unit_of: Tensor


def channel_groups(network: Network) -> tuple[ChannelGroup, ...]:
    """Return all groups of channels and heads that layers write, in the order of their first layers.

    Every layer's output is in exactly one group. What cannot be pruned is among them, with the reason.
    """
    return analyse(network).groups


def analyse(network: Network) -> Analysis:
    """Return the groups of a network with all that was found out on the way."""
    flow = follow(network, RULES)
    while True:
        flow.settle()
        grouping = _grouping(flow)
        parts, changed = _parts(flow, grouping)
        if not changed:
            break
    reasons = {number: "it has only one unit" for number, units in enumerate(grouping.counts) if units < 2}
    reasons = {**reasons, **_reasons(flow, grouping)}
    heads = _heads(flow, grouping)
    members = _members(flow, grouping, reasons)
    groups = []
    for number, name in enumerate(grouping.names):
        units = grouping.counts[number]
        share = parts.get(number, 1)
        groups.append(
            ChannelGroup(
                name,
                "heads" if number in heads else "channels",
                units,
                1 if share == units else share,
                tuple(members[number]),
                grouping.layers[number],
                reasons.get(number),
            )
        )
    return Analysis(flow, tuple(groups), grouping.group_of, grouping.unit_of)


@dataclass(eq=False)
class _Grouping:
    names: list[str]
    layers: list[tuple[str, ...]]
    counts: list[int]
    group_of: Tensor
    unit_of: Tensor


def _grouping(flow: Flow) -> _Grouping:
    """Join the units that are written by one layer, and number them in the order of the first layer's rows."""
    size = flow.labels.count
    above = list(range(len(flow.facts)))
    first: dict[int, int] = {}
    writers = [(place, flow.labels.find(fact.labels)) for place, fact in enumerate(flow.facts) if fact.role == "writes"]

    def top(place: int) -> int:
        while above[place] != place:
            place = above[place]
        return place

    for place, roots in writers:
        for root in torch.unique(roots).tolist():
            one, other = sorted((top(first.setdefault(root, place)), top(place)))
            above[other] = one
    group_of, unit_of = torch.full((size,), -1), torch.full((size,), -1)
    names: dict[int, list[str]] = {}
    counts: dict[int, int] = {}
    order: dict[int, int] = {}
    for place, roots in writers:
        start = top(place)
        number = order.setdefault(start, len(order))
        layer = flow.facts[place].layer
        if layer not in names.setdefault(number, []):
            names[number].append(layer)
        for root in roots.tolist():
            if root != NONE and group_of[root] < 0:
                group_of[root], unit_of[root] = number, counts.get(number, 0)
                counts[number] = counts.get(number, 0) + 1
    numbers = range(len(order))
    return _Grouping(
        [names[n][0] for n in numbers],
        [tuple(names[n]) for n in numbers],
        [counts[n] for n in numbers],
        group_of,
        unit_of,
    )


def _parts(flow: Flow, grouping: _Grouping) -> tuple[dict[int, int], bool]:
    """Return into how many parts each group falls, or join units that cannot be told apart by parts.

    Returns:
        Parts by group; and whether units were joined, so that all has to be looked at again.
    """
    parts: dict[int, int] = {}
    for rows in _views(flow):
        flow.labels.unify(*((rows[:1], rows) if rows.shape[1] >= len(rows) else (rows[:, :1], rows)))
        if not torch.equal(flow.labels.find(rows), rows):
            return parts, True
    for stretches in flow.stretches:
        roots = flow.labels.find(stretches.labels)
        if bool((roots == roots[:, :1]).all()):
            continue  # whole stretches are units
        group, unit = grouping.group_of[roots], grouping.unit_of[roots]
        number = int(group[0, 0])
        orderly = number >= 0 and bool((group == number).all()) and unit.numel() == grouping.counts[number]
        count = len(roots)
        if orderly and torch.equal(unit.reshape(-1), torch.arange(unit.numel())):
            known = parts.get(number, 1)
            if max(known, count) % min(known, count) == 0:
                parts[number] = max(known, count)
                continue
        flow.labels.unify(roots[:, :1], roots)
        if not torch.equal(flow.labels.find(roots), roots):
            return parts, True
    return parts, False


def _views(flow: Flow) -> Iterator[Tensor]:
    """Yield the units of values in which they lie along two axes.

    Only whole rows or the same places of all rows may go: what stays of such a value may be turned before it is made
    flat again, and has to come out in the order in which its readers expect it.
    """
    for node, value in flow.values.items():
        if kind(node) != "reshape" or not isinstance(value, Tensor):
            continue
        labels = flow.labels.compressed(value)
        axes = [axis for axis, size in enumerate(labels.shape) if size > 1]
        if len(axes) > 1 and bool(flow.labels.is_hard(labels).any()):
            yield labels.reshape(labels.shape[axes[0]], -1)


def _reasons(flow: Flow, grouping: _Grouping) -> dict[int, str]:
    """Return why groups cannot be pruned; the first reason that was found counts."""
    for labels, axis, reason in flow.picked:
        roots = flow.labels.compressed(labels)
        if roots.shape[axis] > 1:
            for part in roots.unbind(axis):
                if len(torch.unique(part)) == 1:
                    flow.labels.lock(part, reason)
    _lock_free_axes(flow)
    reasons: dict[int, str] = {}
    for roots, reason in flow.labels.locks():
        for number in torch.unique(grouping.group_of[roots]).tolist():
            if number >= 0:
                reasons.setdefault(number, reason)
    return reasons


def _lock_free_axes(flow: Flow) -> None:
    """Lock units that lie along an axis whose length is not fixed."""
    for node, value in flow.values.items():
        if not isinstance(value, Tensor):
            continue
        labels = flow.labels.compressed(value)
        if any(size > 1 and not isinstance(node.meta["val"].shape[n], int) for n, size in enumerate(labels.shape)):
            flow.labels.lock(labels, f"{flow.title(node)} puts its channels on an axis of free length")


def _heads(flow: Flow, grouping: _Grouping) -> set[int]:
    """Return the groups that matrix products of computed values hold as whole heads."""
    found: set[int] = set()
    for node, value in flow.values.items():
        if kind(node) in ATTENTION and isinstance(value, Tensor):
            found |= set(grouping.group_of[flow.labels.find(value)].reshape(-1).tolist())
    return found - {-1}


def _members(flow: Flow, grouping: _Grouping, reasons: dict[int, str]) -> Mapping[int, list[Member]]:
    """Return for each group what is cut; a constant that holds units along no single axis is a reason not to."""
    members: dict[int, list[Member]] = {number: [] for number in range(len(grouping.names))}
    seen: set[tuple[str, int]] = set()

    def add(constant: str, axis: int, roots: Tensor, role: Role) -> None:
        groups = grouping.group_of[roots]
        for number in torch.unique(groups).tolist():
            if number >= 0:
                units = torch.where(groups == number, grouping.unit_of[roots], -1)
                members[number].append(Member(constant, axis, units, role))

    for fact in flow.facts:
        if (fact.constant, fact.axis) not in seen:
            seen.add((fact.constant, fact.axis))
            add(fact.constant, fact.axis, flow.labels.find(fact.labels), fact.role)
    for constant, labels in flow.constants().items():
        roots = flow.labels.find(labels)
        groups = grouping.group_of[roots]
        if not bool((groups >= 0).any()):
            continue
        key = torch.where(groups >= 0, roots, NONE)
        for axis in range(key.ndim):
            if key.shape[axis] > 1 and bool((key == key.narrow(axis, 0, 1)).all()):
                key = key.narrow(axis, 0, 1)
        axes = [axis for axis, size in enumerate(key.shape) if size > 1]
        if len(axes) != 1:
            for number in torch.unique(groups[groups >= 0]).tolist():
                reasons.setdefault(number, f"the constant {constant} holds its units along no single axis")
            continue
        add(constant, axes[0], key.reshape(-1), "scales")
    return members
