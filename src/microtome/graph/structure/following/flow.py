"""Following units through a graph: a rule for each family of operators says which units lie where in its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph.network import Network
from microtome.graph.operators import constant_source, is_weighted, kind
from microtome.graph.outputs import sizes
from microtome.graph.structure.following.labels import NONE, Labels, full_along

Role = Literal["writes", "reads", "scales"]
LARGEST = 1 << 23
"""Constants with more elements than this are not followed element by element."""


@dataclass(frozen=True, eq=False)
class Fact:
    """One axis of a layer's weight, and the units that lie along it."""

    constant: str
    axis: int
    labels: Tensor
    role: Role
    layer: str


@dataclass(frozen=True, eq=False)
class Stretches:
    """Units in equal stretches, one per row, each of which must keep equally many: (stretches, units in each)."""

    labels: Tensor
    reason: str


@dataclass(frozen=True, eq=False)
class Spread:
    """Two operands of which one has size 1 along an axis of the other's units.

    Attributes:
        wide: labels of the one with units along that axis.
        narrow: of the other.
        sizes: of the other.
        title: of the operator.
    """

    wide: Tensor
    narrow: Tensor
    sizes: tuple[int, ...]
    title: str


@dataclass(eq=False)
class Flow:
    """What is known after a graph was followed.

    Attributes:
        labels: which units are the same.
        values: for each value its labels, with size 1 along axes on which they are the same; a list where an operator
            returns several tensors.
        facts: axes of weights.
        stretches: what group norms and the like ask for.
        picked: values of which slices are taken by their number, along which axis, and what to say.
        spread: operands that have to be looked at again when all else is known.
        layers: names of the weighted layers, by node.
        aliases: for each constant the first name of the same tensor.
    """

    labels: Labels
    values: dict[Node, Tensor | list[Tensor]] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    stretches: list[Stretches] = field(default_factory=list)
    layers: Mapping[Node, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    picked: list[tuple[Tensor, int, str]] = field(default_factory=list)
    spread: list[Spread] = field(default_factory=list)
    _axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _elements: dict[str, Tensor] = field(default_factory=dict)

    def of(self, node: Any) -> Tensor:
        """Return the labels of a value; those of a constant's elements are made when first asked for."""
        if node.op == "get_attr":
            return self.elements(node)
        value = self.values[node]
        assert isinstance(value, Tensor)
        return self.labels.compressed(value)

    def elements(self, node: Node) -> Tensor:
        """Return the labels of a constant, one for each element; `NONE` for a single number."""
        name = self.aliases[str(node.target)]
        if name not in self._elements:
            shape = node.meta["val"].shape
            count = shape.numel()
            self._elements[name] = (
                self.labels.fresh(count, hard=False).reshape(shape)
                if 1 < count <= LARGEST
                else torch.full([1] * len(shape), NONE)
            )
        return self._elements[name]

    def constants(self) -> Mapping[str, Tensor]:
        """Return the labels of all constants that were followed element by element."""
        return self._elements

    def vector(self, labels: Tensor, axis: int, size: int) -> Tensor:
        """Return the labels along one axis, shape (size,), after saying that the others do not tell them apart."""
        moved = full_along(self.labels.find(labels), axis, size).movedim(axis, 0).reshape(size, -1)
        if moved.shape[1] > 1:
            first = moved.amax(1, keepdim=True)
            self.labels.unify(first, moved)
            moved = self.labels.find(first)
        return moved[:, 0]

    def collapse(self, labels: Tensor, axes: Sequence[int], reason: str) -> Tensor:
        """Return labels with size 1 along axes over which an operator sums, sorts or the like.

        Units that it would mix cannot be removed; elements of constants are taken for one.
        """
        labels = self.labels.find(labels)
        for axis in axes:
            if labels.shape[axis] == 1:
                continue
            first = labels.amax(axis, keepdim=True)
            hard = self.labels.is_hard(labels) & (labels != NONE)
            if bool((hard & (labels != first)).any()):
                self.labels.lock(labels[hard], reason)
            self.labels.unify(first, labels)
            labels = self.labels.find(first)
        return labels

    def fact(self, node: Node, axis: int, labels: Tensor, role: Role, layer: str) -> None:
        """Note which units lie along an axis of a constant; two layers that share it share the units."""
        name = self.aliases[str(node.target)]
        known = self._axes.setdefault((name, axis), labels)
        self.labels.unify(known, labels)
        self.facts.append(Fact(name, axis, labels, role, layer))

    def attach(self, vector: Tensor, constant: Any) -> None:
        """Say that a constant's elements belong to units: those of a bias, or of a norm."""
        if not isinstance(constant, Node):
            return
        source = constant_source(constant)
        labels = self.of(constant) if source is None else self.elements(source)
        if labels.numel() > 1:
            self.labels.unify(labels, vector)

    def settle(self) -> None:
        """Unite operands of which one is shared along an axis of the other's units, as far as they share units at all.

        What a constant of shape (C,) scales may have looked like units along two axes before the constants that make
        up the second one were known to belong to the same channels.
        """
        for spread in self.spread:
            wide, narrow = self.labels.compressed(spread.wide), self.labels.compressed(spread.narrow)
            if not any(a > 1 and b > 1 for a, b in zip(wide.shape, narrow.shape, strict=True)):
                if narrow.numel() > 1:
                    self.labels.lock(narrow, f"{spread.title} spreads it over the channels of another value")
                continue
            for axis, size in enumerate(wide.shape):
                if size > 1 and spread.sizes[axis] == 1:
                    first = wide.amax(axis, keepdim=True)
                    self.labels.unify(first, wide)
                    wide = self.labels.find(first)
            joined(self, wide, narrow, spread.title)

    def title(self, node: Node) -> str:
        """Return how to call a node in a sentence."""
        return f"{kind(node)} ({self.layers.get(node, node.name)})"


Rule = Callable[[Flow, Node], "Tensor | list[Tensor]"]


def lies_along(labels: Tensor, sizes: Sequence[int]) -> bool:
    """Whether a value of some sizes has elements of its own along all axes of another's units."""
    return all(size > 1 or n == 1 for size, n in zip(sizes, labels.shape, strict=True))


def joined(flow: Flow, first: Tensor, second: Tensor, title: str) -> Tensor:
    """Return the labels of two operands that lie along one another's units; where only one has any it is locked."""
    one_sided = (first == NONE) != (second == NONE)
    if bool(one_sided.any()):
        for labels in (first, second):
            alone = torch.broadcast_to(labels, one_sided.shape)[one_sided]
            flow.labels.lock(alone, f"{title} joins it with values whose channels cannot be followed")
    flow.labels.unify(first, second)
    return flow.labels.compressed(torch.maximum(first, second))


def blank(node: Node) -> Tensor | list[Tensor]:
    """Return the labels of an output of which nothing is known."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [torch.full([1] * part.ndim, NONE) for part in value if isinstance(part, Tensor)]
    assert isinstance(value, Tensor)
    return torch.full([1] * value.ndim, NONE)


def unknown(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """Lock what an operator reads that has no rule."""
    for source in tensors(node):
        flow.labels.lock(flow.of(source), f"the operator {flow.title(node)} reads it, which has no rule")
    return blank(node)


def tensors(node: Node) -> list[Node]:
    """Return the tensors that a node reads."""
    return [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]


def follow(network: Network, rules: Mapping[str, Rule]) -> Flow:
    """Follow the units of a network through its graph.

    Args:
        network: it has no quantizers.
        rules: by kind of node.
    """
    names: dict[int, str] = {}
    aliases = {name: names.setdefault(id(network._at(name)), name) for name in network.constants()}
    flow = Flow(Labels(), layers={layer.node: layer.name for layer in network.layers}, aliases=aliases)
    for node in network.graph_module.graph.nodes:
        if node.op == "placeholder":
            flow.values[node] = _input(flow, node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                flow.labels.lock(flow.of(source), "it is an output of the network")
        elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor | list | tuple):
            rule = rules.get("weighted" if is_weighted(node) else kind(node).strip("_"), unknown)
            flow.values[node] = rule(flow, node)
    return flow


def _input(flow: Flow, node: Node) -> Tensor:
    """Return the labels of an input: its second axis holds channels that cannot be removed."""
    shape = [1] * node.meta["val"].ndim
    if len(shape) < 2 or not node.meta["val"].dtype.is_floating_point:
        return torch.full(shape, NONE)
    shape[1] = sizes(node)[1]
    labels = flow.labels.fresh(shape[1], hard=True)
    flow.labels.lock(labels, "it is an input of the network")
    return labels.reshape(shape)


def operand(node: Node, place: int = 0) -> Node:
    """Return a value that a node reads, by its place."""
    value = node.args[place]
    assert isinstance(value, Node)
    return value


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """Return an argument of a node, given by place or by name."""
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, default)


def axis_of(node: Node, place: int = 1, default: Any = 0, name: str = "dim") -> int:
    """Return the axis that an operator is told, counted from the front of its first argument."""
    source: Any = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
    return int(argument(node, place, name, default)) % max(len(sizes(source)), 1)
