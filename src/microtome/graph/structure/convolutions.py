"""Layers of a graph as convolutions, and back."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from microtome.core.columns import Geometry
from microtome.core.composition import Convolution, averaging
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, is_weighted, kind
from microtome.graph.structure.scaling import network_constant
from microtome.graph.watching.moments import geometry, named_arguments, spread

PLAIN: dict[int, Any] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
POOLS = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
# Along space they take means whose weights add up to one.
MEANS = frozenset(
    {
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    }
)


def convolution(network: Network, node: Node) -> Convolution | None:
    """Return what a layer, or an average pool, computes; None where that is no convolution, or padded unevenly."""
    if is_weighted(node):
        named = named_arguments(node) if kind(node) != "linear" else {}
        walk = geometry(node)
        odd = any(d * (k - 1) % 2 for d, k in zip(walk.dilation, walk.kernel, strict=True))
        if named.get("padding") == "same" and odd:
            return None
        bias = network_constant(network, node.args[2]) if _has_bias(node) else None
        return Convolution(network_constant(network, node.args[1]), bias, walk)
    channels = _pooled(node)
    if channels is None:
        return None
    named, axes = named_arguments(node), POOLS[node.target]  # type: ignore[index]
    kernel = spread(named["kernel_size"], axes)
    stride = spread(named["stride"], axes) if named["stride"] else kernel
    walk = Geometry(kernel, stride, spread(named["padding"], axes), (1,) * axes, channels)
    return averaging(channels, walk, next(network.graph_module.parameters()))


def set_convolution(network: Network, node: Node, value: Convolution) -> None:
    """Let a layer compute something else; its name, and what a transposed one has beside, stay."""
    walk = value.geometry
    source = constant_source(node.args[1])
    assert source is not None
    name = str(source.target).removesuffix(".weight")
    edit.own_constant(network.graph_module, node, 1, value.weight)
    if value.bias is not None:
        edit.set_bias(network.graph_module, node, value.bias, name)
    if walk.kernel and not walk.transposed:
        node.target = PLAIN[len(walk.kernel)]
        settings = (list(walk.stride), list(walk.padding), list(walk.dilation), walk.groups)
        node.args, node.kwargs = (*node.args[:3], *(() if len(node.args) > 2 else (None,)), *settings), {}


def means(node: Node) -> bool:
    """Whether each of an operator's values is a mean of values of the same channel, weighted or not.

    Then it commutes with a layer that takes every place by itself, bias included.
    """
    if kind(node) in MEANS:
        return True
    if node.target in POOLS:
        named = named_arguments(node)
        padded = any(spread(named["padding"], POOLS[node.target]))
        return named.get("divisor_override") is None and not (padded and named["count_include_pad"])
    return kind(node) == "avg_pool"  # adaptive


def _pooled(node: Node) -> int | None:
    """Return the channels of an average pool that is a convolution."""
    if node.target not in POOLS:
        return None
    named = named_arguments(node)
    channels = node.meta["val"].shape[1]
    uneven = any(spread(named["padding"], POOLS[node.target])) and not named["count_include_pad"]
    if uneven or named["ceil_mode"] or named.get("divisor_override") is not None or not isinstance(channels, int):
        return None
    return channels


def _has_bias(node: Node) -> bool:
    return len(node.args) > 2 and node.args[2] is not None
