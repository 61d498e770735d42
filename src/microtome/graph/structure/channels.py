"""Following the channels of a value through a graph to the layers that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph.operators import aten, constant_source, is_weighted, kind

# f(s * x) = s * f(x) for every s > 0: value by value, and where values of one channel are mixed.
POINTWISE = frozenset({"relu", "leaky_relu", "prelu", "identity"})
MIXING = frozenset(
    {
        *("max_pool", "avg_pool", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    }
)


# f(x + s) = f(x) + s
MOVING = frozenset(
    {"identity", "concat", "reshape", "transpose", "mean", "roll", "clone", "contiguous", "select", "slice"}
)


@dataclass(frozen=True, eq=False)
class ChannelReader:
    """A layer that reads scaled channels; for each of its inputs the channel that it is, -1 for none of them."""

    node: Node
    channels: Tensor


def readers(node: Node, axis: int, channels: Tensor, *, shifts: bool = False) -> tuple[ChannelReader, ...]:
    """Follow a value to the layers that read it, on ways that commute with a positive scale per channel.

    Concatenations along channels are looked through, and so are views that keep channels apart, flattening included.

    Args:
        node: the value.
        axis: where its channels lie.
        channels: their numbers, shape (C,).
        shifts: the ways must commute with a shift per channel as well, and only linear layers may read.

    Returns:
        The readers; none if something else reads the value too, or a layer whose weight another one shares.
    """
    return tuple(_readers(node, axis, channels, shifts) or ())


def free(node: Node) -> bool:
    """Whether no other layer shares a layer's weight and bias."""
    source = constant_source(node.args[1])
    bias = constant_source(node.args[2]) if len(node.args) > 2 else None
    return source is not None and len(source.users) == 1 and (bias is None or len(bias.users) == 1)


def _readers(node: Node, axis: int, channels: Tensor, shifts: bool) -> list[ChannelReader] | None:
    found: list[ChannelReader] = []
    for user in node.users:
        if is_weighted(user):
            inputs = node.meta["val"].ndim - 1 if kind(user) == "linear" else 1
            if (
                user.args[0] is not node
                or inputs != axis
                or not free(user)
                or (shifts and inputs == 1 != node.meta["val"].ndim - 1)
            ):
                return None
            found.append(ChannelReader(user, channels))
            continue
        moved = _moved(node, user, axis, channels) if not shifts or kind(user) in MOVING else None
        behind = None if moved is None else _readers(user, *moved, shifts)
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
    if place in ("roll", "clone", "contiguous"):
        return None if place == "roll" and _rolls(user, axis) else (axis, channels)
    if place in ("select", "slice"):
        dim: Any = user.args[1] if len(user.args) > 1 else 0
        dim %= node.meta["val"].ndim
        return None if dim == axis else (axis - (place == "select" and dim < axis), channels)
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


def _rolls(user: Node, axis: int) -> bool:
    """Whether values are rolled along an axis, or in an order that no axis has."""
    dims: Any = user.args[2] if len(user.args) > 2 else None
    return not dims or axis in [dim % user.meta["val"].ndim for dim in dims]


def _pads_zeros(user: Node) -> bool:
    """Whether a padding repeats the image's values, or zeros."""
    plain = user.target is aten.constant_pad_nd.default
    value: Any = user.args[2 if plain else 3] if len(user.args) > (2 if plain else 3) else user.kwargs.get("value")
    return value is None or float(value) == 0


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number
