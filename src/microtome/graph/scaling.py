"""Where the channels of a layer's output can be scaled, and the scale taken back by those who read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, groups, is_weighted, kind

# f(s * x) = s * f(x) for every s > 0, channel by channel.
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "max_pool", "avg_pool", "identity"})


@dataclass(frozen=True)
class Reader:
    """A layer that reads scaled channels, and the position of the first of them among its inputs."""

    node: Node
    offset: int


@dataclass(frozen=True)
class Pair:
    """A layer whose output channels can be scaled freely, and all that reads them."""

    node: Node
    channels: int
    readers: tuple[Reader, ...]


def pairs(network: Network) -> tuple[Pair, ...]:
    """Return the layers whose output reaches only layers, on ways that commute with a scale per channel.

    Concatenations along channels are looked through. A layer with groups, or whose weight another one shares, is left
    out.
    """
    found = []
    for layer in network.layers:
        readers = _readers(layer.node, 0) if _free(layer.node) else None
        if readers:
            found.append(Pair(layer.node, output_channels(layer.node), tuple(readers)))
    return tuple(found)


def output_channels(node: Node) -> int:
    """Return the number of a layer's output channels."""
    return int(_weight(node).shape[1 if kind(node) == "conv_transpose" else 0])


def output_ranges(network: Network, pair: Pair) -> Tensor:
    """Return the largest magnitude of the weights that make each channel; shape (C,)."""
    return _rows(network, pair.node, 1 if kind(pair.node) == "conv_transpose" else 0).abs().amax(1)


def input_ranges(network: Network, pair: Pair) -> Tensor:
    """Return the largest magnitude of the weights that read each channel, over all readers; shape (C,)."""
    found = []
    for reader in pair.readers:
        rows = _rows(network, reader.node, _input_axis(reader.node)).abs().amax(1)
        found.append(rows[reader.offset : reader.offset + pair.channels])
    return torch.stack(found).amax(0)


def rescale(network: Network, pair: Pair, scale: Tensor) -> None:
    """Divide a layer's output channels by `scale` (C,), positive, and multiply it into the weights that read them."""
    graph_module = network.graph_module
    axis = 1 if kind(pair.node) == "conv_transpose" else 0
    weight = _value(network, pair.node.args[1])
    edit.own_constant(graph_module, pair.node, 1, weight / _along(scale, weight.ndim, axis))
    if len(pair.node.args) > 2 and pair.node.args[2] is not None:
        edit.own_constant(graph_module, pair.node, 2, _value(network, pair.node.args[2]) / scale)
    for reader in pair.readers:
        axis = _input_axis(reader.node)
        weight = _value(network, reader.node.args[1]).clone()
        part = weight.narrow(axis, reader.offset, pair.channels)
        part.mul_(_along(scale, weight.ndim, axis))
        edit.own_constant(graph_module, reader.node, 1, weight)


def _readers(node: Node, offset: int) -> list[Reader] | None:
    """Follow a value to the layers that read it; None if something else does."""
    found: list[Reader] = []
    for user in node.users:
        place = kind(user)
        if is_weighted(user) and user.args[0] is node and _free(user):
            found.append(Reader(user, offset))
            continue
        moved = offset
        if place == "concat":
            inputs: Any = user.args[0]
            if (user.args[1] if len(user.args) > 1 else 0) != 1 or list(inputs).count(node) > 1:
                return None
            moved += sum(int(n.meta["val"].shape[1]) for n in inputs[: list(inputs).index(node)])
        elif place == "reshape":
            before, after = node.meta["val"].shape, user.meta["val"].shape
            if len(after) != 2 or before[1] != after[1]:
                return None
        elif place not in HOMOGENEOUS:
            return None
        behind = _readers(user, moved)
        if behind is None:
            return None
        found += behind
    return found or None


def _free(node: Node) -> bool:
    source = constant_source(node.args[1])
    bias = constant_source(node.args[2]) if len(node.args) > 2 else None
    alone = source is not None and len(source.users) == 1 and (bias is None or len(bias.users) == 1)
    return alone and groups(node) == 1 and (kind(node) != "linear" or node.meta["val"].ndim == 2)


def _input_axis(node: Node) -> int:
    return 0 if kind(node) == "conv_transpose" else 1


def _weight(node: Node) -> Tensor:
    source = constant_source(node.args[1])
    assert source is not None
    value: Tensor = source.meta["val"]
    return value


def _value(network: Network, argument: object) -> Tensor:
    source = constant_source(argument)
    assert source is not None
    return network.tensor(str(source.target))


def _rows(network: Network, node: Node, axis: int) -> Tensor:
    return _value(network, node.args[1]).movedim(axis, 0).flatten(1)


def _along(scale: Tensor, dims: int, axis: int) -> Tensor:
    shape = [1] * dims
    shape[axis] = -1
    return scale.reshape(shape)
