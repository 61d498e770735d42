"""Layers with fewer output channels than a vector register has lanes, and how many columns of theirs fill it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Interpreter, Node

from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, groups, kind
from microtome.graph.quiet import quiet
from microtome.types import Port

LANES = 16  # 32-bit sums in a vector register of 512 bits: fewer output channels cost as much
SIDE_BY_SIDE = (2, 4, 8)
PASSED = frozenset({"relu", "clamp", "leaky_relu", "elu", "identity", "prelu", "batch_norm", "add"})  # value by value
PROBES = (*range(1, 9), 16, 32, 64)


@dataclass(frozen=True)
class Fold:
    """How a layer is folded.

    Attributes:
        columns: how many it computes side by side.
        channels: of its output.
        transposed: whether it is a transposed convolution.
        split: whether it shall read the parts of a concatenation one by one.
    """

    columns: int
    channels: int
    transposed: bool
    split: bool = False


def folds(network: Network) -> dict[Node, Fold]:
    """Return what is to be folded: layers that cost less then, and those whose result is added to theirs."""
    found = {node: layer for node in network.graph_module.graph.nodes if (layer := _foldable(node)) is not None}
    if not any(layer.gains(columns) for layer in found.values() for columns in layer.choices):
        return {}
    widths = _widths(network, found)
    chosen: dict[Node, int] = {}
    for node, layer in found.items():
        fitting = [c for c in layer.choices if layer.gains(c) and all(width % c == 0 for width in widths[node])]
        if fitting:
            chosen[node] = min(fitting, key=layer.cost)
    for node, columns in list(chosen.items()):
        partner = _added_to(node)
        layer = None if partner is None else found.get(partner)
        if partner is None or layer is None:
            continue
        if columns in layer.choices and layer.channels == found[node].channels:
            chosen.setdefault(partner, columns)
    return {
        node: Fold(columns, found[node].channels, found[node].transposed, _splits(node, chosen))
        for node, columns in chosen.items()
    }


def reaches_a_quantizer(node: Node) -> bool:
    """Whether a node is a quantizer of the whole tensor, or works value by value and leads to such."""
    if kind(node) == "quantizer":
        return node.target is aten.fake_quantize_per_tensor_affine.default
    return kind(node) in PASSED and any(reaches_a_quantizer(user) for user in node.users)


def each(node: Node, position: int, name: str, default: int, dims: int) -> list[int]:
    """Return an argument of a convolution that has one value per axis of space."""
    value: Any = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    values = [int(value)] if isinstance(value, int) else [int(v) for v in value] or [default]
    return values * dims if len(values) == 1 else values


def shape(node: Node) -> tuple[Any, ...]:
    """Return the shape that a node's value was captured with; empty if it is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


@dataclass(frozen=True)
class _Layer:
    """A layer that could be folded; `kernel` is its width in columns."""

    channels: int
    kernel: int
    transposed: bool

    @property
    def choices(self) -> tuple[int, ...]:
        return (self.kernel,) if self.transposed else SIDE_BY_SIDE

    def cost(self, columns: int) -> float:
        """Multiplications with whole registers, per column and tap of the other axes."""
        taps = 1 if self.transposed and columns > 1 else self.kernel
        if not self.transposed:
            taps += columns - 1
        return taps / columns * math.ceil(columns * self.channels / LANES)

    def gains(self, columns: int) -> bool:
        return self.cost(columns) < self.cost(1)


def _foldable(node: Node) -> _Layer | None:
    """Return what a layer in integers is, if the form is one that can be folded."""
    transposed = kind(node) == "conv_transpose"
    if kind(node) not in ("conv", "conv_transpose") or node.target is aten.convolution.default or groups(node) != 1:
        return None
    source = constant_source(node.args[1])
    if source is None or source.meta["val"].ndim < 4 or not all(_in_integers(value) for value in node.args[:2]):
        return None
    if isinstance(node.args[4] if len(node.args) > 4 else node.kwargs.get("padding"), str):
        return None
    weight = source.meta["val"]
    dims, kernel = weight.ndim - 2, int(weight.shape[-1])
    stride, padding = each(node, 3, "stride", 1, dims)[-1], each(node, 4, "padding", 0, dims)[-1]
    dilation = each(node, 7 if transposed else 5, "dilation", 1, dims)[-1]
    if transposed:
        extra = each(node, 5, "output_padding", 0, dims)[-1]
        fits = (stride, padding, extra, dilation) == (kernel, 0, 0, 1) and kernel > 1
    else:
        fits = (stride, 2 * padding, dilation) == (1, kernel - 1, 1)
    return _Layer(int(weight.shape[1 if transposed else 0]), kernel, transposed) if fits else None


def _in_integers(value: object) -> bool:
    """Whether a value lies behind a quantizer, with only what passes integers on in between."""
    while isinstance(value, Node) and kind(value) in ("concat", "max_pool"):
        inner = value.args[0]
        value = inner[0] if isinstance(inner, list | tuple) else inner
    return isinstance(value, Node) and kind(value) == "quantizer"


def _added_to(node: Node) -> Node | None:
    """Return the layer whose result is added to that of a layer; both may have passed what works value by value."""
    value = node
    while len(value.users) == 1:
        (user,) = value.users
        if kind(user) == "add":
            other: Any = user.args[1] if user.args[0] is value else user.args[0]
            while isinstance(other, Node) and kind(other) in PASSED - {"add"}:
                other = other.args[0]
            return other if isinstance(other, Node) else None
        if kind(user) not in PASSED:
            return None
        value = user
    return None


def _splits(node: Node, chosen: Collection[Node]) -> bool:
    """Whether a layer reads a concatenation of narrow parts, all of whose readers are folded.

    Joining a few bytes per pixel costs as much as a convolution, and is not needed if each part has its own.
    """
    value = node.args[0]
    if not isinstance(value, Node) or kind(value) != "concat" or kind(node) == "conv_transpose":
        return False
    if len(value.args) < 2 or value.args[1] != 1 or any(user not in chosen for user in value.users):
        return False
    parts: Any = value.args[0]
    return all(kind(part) == "quantizer" and int(shape(part)[1]) < LANES for part in parts)


def _widths(network: Network, nodes: Collection[Node]) -> dict[Node, set[int]]:
    """Return the widths of nodes' outputs for the width that was captured and for others that the network accepts."""
    probes = (0, *PROBES) if network.dynamic[-1] else (0,)
    result: dict[Node, set[int]] = {node: set() for node in nodes}
    for more in probes:
        run = _Widths(network, nodes)
        try:
            with quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                run.run(*(_wider(port, more, network.device) for port in network.inputs))
        except Exception:
            if more == 0:
                raise
            continue
        for node, width in run.widths.items():
            result[node].add(width)
    return result


def _wider(port: Port, more: int, device: torch.device) -> Tensor:
    """Return an input that is wider than the one captured, if its last axis is free."""
    sizes = [1, *port.shape]
    if len(sizes) > 2 and port.dynamic[-1]:
        sizes[-1] += more
    return torch.empty(sizes, device=device)


class _Widths(Interpreter):
    """Keeps the last size of some nodes' values."""

    def __init__(self, network: Network, nodes: Collection[Node]) -> None:
        super().__init__(network.graph_module)
        self.extra_traceback = False
        self.widths: dict[Node, int] = {}
        self._nodes = set(nodes)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._nodes:
            self.widths[n] = int(value.shape[-1])
        return value
