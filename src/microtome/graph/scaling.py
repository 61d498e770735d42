"""Where the channels of a layer's output can be scaled, and the scale taken back by those who read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.distribution import recall, remember
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, groups, is_weighted, kind

# f(s * x) = s * f(x) for every s > 0: value by value, and where values of one channel are mixed.
POINTWISE = frozenset({"relu", "leaky_relu", "prelu", "identity"})
MIXING = frozenset(
    {
        *("max_pool", "avg_pool", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    }
)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads scaled channels; for each of its inputs the channel that it is, -1 for none of them."""

    node: Node
    channels: Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer whose output channels can be scaled freely, and all that reads them."""

    node: Node
    channels: int
    readers: tuple[Reader, ...]


def pairs(network: Network) -> tuple[Pair, ...]:
    """Return the layers whose output reaches only layers, on ways that commute with a scale per channel.

    Concatenations along channels are looked through, and so are views that keep channels apart, flattening included. A
    layer whose weight another one shares is left out.
    """
    found = []
    for layer in network.layers:
        count = output_channels(layer.node)
        axis = layer.node.meta["val"].ndim - 1 if layer.op == "linear" else 1
        readers = _readers(layer.node, axis, torch.arange(count)) if _free(layer.node) else None
        if readers:
            found.append(Pair(layer.node, count, tuple(readers)))
    return tuple(found)


def output_channels(node: Node) -> int:
    """Return the number of a layer's output channels."""
    shape = _weight(node).shape
    return int(shape[1] * groups(node) if kind(node) == "conv_transpose" else shape[0])


def output_ranges(network: Network, pair: Pair) -> Tensor:
    """Return the largest magnitude of the weights that make each channel; shape (C,)."""
    return _ranges(_value(network, pair.node.args[1]), pair.node, second=kind(pair.node) == "conv_transpose")


def input_ranges(network: Network, pair: Pair) -> Tensor:
    """Return the largest magnitude of the weights that read each channel, over all readers; shape (C,)."""
    largest = torch.zeros(pair.channels, device=network.device)
    for reader in pair.readers:
        weight = _value(network, reader.node.args[1])
        ranges = _ranges(weight, reader.node, second=kind(reader.node) != "conv_transpose")
        channels = reader.channels.to(ranges.device)
        ours = channels >= 0
        largest.scatter_reduce_(0, channels[ours], ranges[ours], "amax")
    return largest


def rescale(network: Network, pair: Pair, scale: Tensor) -> None:
    """Divide a layer's output channels by `scale` (C,), positive, and multiply it into the weights that read them."""
    graph_module = network.graph_module
    weight = _value(network, pair.node.args[1])
    edit.own_constant(
        graph_module, pair.node, 1, _scaled(weight, pair.node, 1 / scale, second=kind(pair.node) == "conv_transpose")
    )
    if len(pair.node.args) > 2 and pair.node.args[2] is not None:
        edit.own_constant(graph_module, pair.node, 2, _value(network, pair.node.args[2]) / scale)
    normal = recall(pair.node)
    if normal is not None:
        remember(pair.node, normal.mean / scale, None if normal.std is None else normal.std / scale)
    for reader in pair.readers:
        channels = reader.channels.to(scale.device)
        factors = torch.where(channels >= 0, scale[channels.clamp(min=0)], torch.ones_like(scale[:1]))
        weight = _value(network, reader.node.args[1])
        scaled = _scaled(weight, reader.node, factors, second=kind(reader.node) != "conv_transpose")
        edit.own_constant(graph_module, reader.node, 1, scaled)


def _readers(node: Node, axis: int, channels: Tensor) -> list[Reader] | None:
    """Follow a value, whose `axis` holds `channels`, to the layers that read it; None if something else does."""
    found: list[Reader] = []
    for user in node.users:
        if is_weighted(user):
            inputs = node.meta["val"].ndim - 1 if kind(user) == "linear" else 1
            if user.args[0] is not node or inputs != axis or not _free(user):
                return None
            found.append(Reader(user, channels))
            continue
        moved = _moved(node, user, axis, channels)
        behind = None if moved is None else _readers(user, *moved)
        if behind is None:
            return None
        found += behind
    return found or None


def _moved(node: Node, user: Node, axis: int, channels: Tensor) -> tuple[int, Tensor] | None:
    """Return where an operator puts the channels: the axis and what lies on it; None if a scale does not pass."""
    place = kind(user)
    if place == "concat":
        return _joined(node, user, axis, channels)
    if user.args[0] is not node:  # such as the slopes of a PReLU
        return None
    if place in POINTWISE or (place in MIXING and axis == 1 and node.meta["val"].ndim > 2):
        return axis, channels
    if place == "pad":
        return (axis, channels) if _pads_zeros(user) and _is(user.meta["val"].shape[axis], len(channels)) else None
    if place == "mean":
        return _averaged(node, user, axis, channels)
    if place == "transpose":
        return _turned(node, user, axis), channels
    return _viewed(node, user, axis, channels) if place == "reshape" else None


def _joined(node: Node, user: Node, axis: int, channels: Tensor) -> tuple[int, Tensor] | None:
    """Put the channels behind those of the other values of a concatenation."""
    inputs: Any = user.args[0]
    along: Any = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
    if along % node.meta["val"].ndim != axis:
        return None
    parts = [
        channels if value is node else channels.new_full((int(value.meta["val"].shape[axis]),), -1) for value in inputs
    ]
    return axis, torch.cat(parts)


def _turned(node: Node, user: Node, axis: int) -> int:
    """Return where a permutation or transposition puts an axis."""
    order = list(range(node.meta["val"].ndim))
    if len(user.args) == 2:
        order = [order[dim] for dim in user.args[1]]  # type: ignore[union-attr,index]
    else:
        one, other = (order[dim] for dim in user.args[1:3])  # type: ignore[index]
        order[one], order[other] = other, one
    return order.index(axis)


def _viewed(node: Node, user: Node, axis: int, channels: Tensor) -> tuple[int, Tensor] | None:
    """Return where a view puts the channels, if it keeps them apart."""
    before, after = node.meta["val"].shape, user.meta["val"].shape
    whole = len(channels)
    if axis == len(before) - 1 and _is(after[-1], whole):
        return len(after) - 1, channels
    if axis != 1 or len(before) < 2:
        return None
    if len(after) > 2 and str(before[0]) == str(after[0]) and _is(after[1], whole):
        return 1, channels
    inner = [int(size) for size in before[2:] if isinstance(size, int)]
    each = int(torch.tensor(inner).prod())
    if len(after) == 2 and len(inner) == len(before) - 2 and _is(after[1], whole * each):
        return 1, channels.repeat_interleave(each)
    return None


def _averaged(node: Node, user: Node, axis: int, channels: Tensor) -> tuple[int, Tensor] | None:
    """Return where a mean over other axes puts the channels."""
    given: Any = user.args[1] if len(user.args) > 1 else None
    if not given:
        return None
    dims = [dim % node.meta["val"].ndim for dim in given]
    kept = bool(user.args[2]) if len(user.args) > 2 else bool(user.kwargs.get("keepdim", False))
    if axis in dims:
        return None
    return axis if kept else axis - sum(dim < axis for dim in dims), channels


def _pads_zeros(user: Node) -> bool:
    """Whether a padding repeats the image's values, or zeros."""
    plain = user.target is aten.constant_pad_nd.default
    value: Any = user.args[2 if plain else 3] if len(user.args) > (2 if plain else 3) else user.kwargs.get("value")
    return value is None or float(value) == 0


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _free(node: Node) -> bool:
    source = constant_source(node.args[1])
    bias = constant_source(node.args[2]) if len(node.args) > 2 else None
    return source is not None and len(source.users) == 1 and (bias is None or len(bias.users) == 1)


def _weight(node: Node) -> Tensor:
    source = constant_source(node.args[1])
    assert source is not None
    value: Tensor = source.meta["val"]
    return value


def _value(network: Network, argument: object) -> Tensor:
    source = constant_source(argument)
    assert source is not None
    return network.tensor(str(source.target))


def _parts(weight: Tensor, node: Node, *, second: bool) -> Tensor:
    """View a weight with its first axis in front, (C, -1); or as (groups, -1, channels of one group, -1)."""
    return weight.reshape(groups(node), -1, weight.shape[1], weight[0, 0].numel()) if second else weight.flatten(1)


def _ranges(weight: Tensor, node: Node, *, second: bool) -> Tensor:
    """Return the largest magnitude along a weight's first axis, or along its second one, group by group."""
    parts = _parts(weight, node, second=second).abs()
    return parts.amax((1, 3)).flatten() if second else parts.amax(1)


def _scaled(weight: Tensor, node: Node, scale: Tensor, *, second: bool) -> Tensor:
    """Multiply a weight along its first axis, or along its second one, group by group."""
    shape = (groups(node), 1, -1, 1) if second else (-1, 1)
    return (_parts(weight, node, second=second) * scale.reshape(shape)).reshape(weight.shape)
