"""What batch norms say about values: mean and standard deviation per channel, kept and followed without any data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.normal import moments
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, is_weighted, kind
from microtome.graph.watching.moments import geometry

MEMORY = "microtome_normal"

# Norms that take each channel's mean away, and a bias with it.
MEAN_FREE = frozenset({"instance_norm"})

POINTWISE = frozenset(
    {
        *("relu", "clamp", "leaky_relu", "prelu", "elu", "silu", "silu_", "gelu", "sigmoid", "tanh"),
        *("hardswish", "hardswish_", "hardsigmoid", "mish", "softplus", "relu6", "relu6_"),
    }
)
AVERAGING = frozenset(
    {
        *("avg_pool", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    }
)
# An operator that writes into its input, and the one that does not.
WITHOUT_WRITING: dict[object, object] = {
    aten.relu_.default: aten.relu.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.silu_.default: aten.silu.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.relu6_.default: aten.relu6.default,
}


@dataclass(frozen=True, eq=False)
class Normal:
    """Mean and standard deviation of each channel, shape (C,); `std` is None where only the mean is known."""

    mean: Tensor
    std: Tensor | None


def remember(node: Node, mean: Tensor, std: Tensor | None) -> None:
    """Keep with a node what its value looks like. Copies of the network keep it too, files do not."""
    node.meta[MEMORY] = Normal(mean.detach().clone(), None if std is None else std.detach().clone())


def recall(node: Node) -> Normal | None:
    """Return what was kept with a node."""
    found = node.meta.get(MEMORY)
    return found if isinstance(found, Normal) else None


def forget(node: Node) -> None:
    """Drop what was kept with a node, such as after it lost channels."""
    node.meta.pop(MEMORY, None)


def mean_is_removed(node: Node) -> bool:
    """Whether only norms read the node that take each channel's mean away."""
    return bool(node.users) and all(kind(user) in MEAN_FREE for user in node.users)


def distributions(network: Network) -> dict[Node, Normal]:
    """Follow what is known of values through the graph, as the float network would compute them.

    Batch norms, folded ones included, and instance norms give normal distributions. Activation functions turn these
    into others, whose mean and deviation are then known (Nagel et al., ICCV 2019, section 4.2.1 and appendix C, for
    ReLU). A layer without a norm passes the mean on, a sum both, as if its terms were independent. Values that no norm
    says anything about, such as the input, max-pools and what depends on them, are missing. Zero padding is ignored.
    """
    found: dict[Node, Normal] = {}
    for node in network.graph_module.graph.nodes:
        if node.op == "call_function":
            normal = recall(node) or _behind(network, node, found)
            if normal is not None:
                found[node] = normal
    return found


def mean_response(node: Node, weight: Tensor, mean: Tensor) -> Tensor:
    """Return a weighted layer's mean output (O,), without bias, for a mean input (I,); borders are ignored.

    Args:
        node: the layer.
        weight: used in place of the layer's own.
        mean: of each input channel.
    """
    if kind(node) == "linear":
        return weight @ mean
    walk = geometry(node)
    taps = weight.flatten(2).sum(2)
    if walk.transposed:  # a position is reached by every stride-th tap
        rows = taps.reshape(walk.groups, -1, taps.shape[1])
        sums = torch.einsum("gio,gi->go", rows, mean.reshape(walk.groups, -1))
        return sums.flatten() / int(torch.tensor(walk.stride).prod())
    rows = taps.reshape(walk.groups, -1, taps.shape[1])
    return torch.einsum("goi,gi->go", rows, mean.reshape(walk.groups, -1)).flatten()


def _behind(network: Network, node: Node, found: dict[Node, Normal]) -> Normal | None:
    """Return what is known of a node's value, given the values before it."""
    place = kind(node)
    if place in ("batch_norm", "instance_norm"):
        return _normed(network, node)
    if place == "concat":
        return _joined(node, found)
    first = found.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if first is None:
        return None
    if place in POINTWISE:
        return _activated(network, node, first)
    if is_weighted(node):
        bias = _constant(network, node.args[2]) if len(node.args) > 2 else None
        response = mean_response(node, _constant(network, node.args[1]), first.mean)  # type: ignore[arg-type]
        return Normal(response if bias is None else response + bias, None)
    if place in ("quantizer", "identity"):
        return first
    if place in AVERAGING or (place == "mean" and _over_space(node)):
        return Normal(first.mean, None)
    if place == "add" and len(node.args) == 2 and not node.kwargs:
        return _added(node, first, found)
    return _flattened(node, first) if place == "reshape" else None


def _normed(network: Network, node: Node) -> Normal | None:
    """Return what a norm leaves: its own shift and scale."""
    value = node.meta["val"]
    scale, shift = (_constant(network, node.args[position]) for position in (1, 2))
    trained = node.args[5]  # batch norm: uses the batch's statistics; instance norm: uses its own
    if (kind(node) == "batch_norm") == bool(trained):
        return None
    channels = torch.ones(int(value.shape[1]), device=network.device)
    return Normal(0 * channels if shift is None else shift, channels if scale is None else scale.abs())


def _activated(network: Network, node: Node, normal: Normal) -> Normal | None:
    if normal.std is None:
        return None
    target: Any = WITHOUT_WRITING.get(node.target, node.target)
    arguments = [_constant(network, a) if isinstance(a, Node) else a for a in node.args[1:]]
    mean, std = moments(lambda x: target(x, *arguments, **node.kwargs), normal.mean, normal.std)
    return Normal(mean, std)


def _added(node: Node, first: Normal, found: dict[Node, Normal]) -> Normal | None:
    other = found.get(node.args[1]) if isinstance(node.args[1], Node) else None
    if other is None or other.mean.shape != first.mean.shape:
        return None
    known = first.std is not None and other.std is not None
    return Normal(first.mean + other.mean, torch.hypot(first.std, other.std) if known else None)  # type: ignore[arg-type]


def _joined(node: Node, found: dict[Node, Normal]) -> Normal | None:
    inputs: Any = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts = [found.get(value) for value in inputs]
    if dim != 1 or any(part is None for part in parts):
        return None
    known = all(part.std is not None for part in parts)  # type: ignore[union-attr]
    means = torch.cat([part.mean for part in parts])  # type: ignore[union-attr]
    return Normal(means, torch.cat([part.std for part in parts]) if known else None)  # type: ignore[union-attr,misc]


def _flattened(node: Node, normal: Normal) -> Normal | None:
    """Repeat a channel's distribution for each of its positions behind a flattening to (N, F)."""
    before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    channels = len(normal.mean)
    if len(after) != 2 or not isinstance(after[1], int) or after[1] % channels or before[1] != channels:
        return None
    each = after[1] // channels
    std = None if normal.std is None else normal.std.repeat_interleave(each)
    return Normal(normal.mean.repeat_interleave(each), std)


def _over_space(node: Node) -> bool:
    """Whether a mean leaves the batch and the channels alone."""
    dims: Any = node.args[1] if len(node.args) > 1 else None
    rank = node.args[0].meta["val"].ndim  # type: ignore[union-attr]
    return bool(dims) and min(dim % rank for dim in dims) > 1


def _constant(network: Network, argument: object) -> Tensor | None:
    source = constant_source(argument)
    return None if source is None else network.tensor(str(source.target))
