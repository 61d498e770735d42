"""A layer as a chain of smaller ones: its kernel, and the links that factors of it become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.decomposition.factor import Factor
from microtome.graph.edit import Link
from microtome.graph.network import Layer, Network
from microtome.graph.operators import aten, constant_source, kind
from microtome.graph.watching.moments import geometry, named_arguments
from microtome.graph.watching.observe import Observed

CONVOLUTIONS: dict[int, Any] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED: dict[int, Any] = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}


@dataclass(frozen=True)
class Walk:
    """Where a layer walks, for a batch of one.

    Attributes:
        before: spatial size of its input; of linear layers all axes but the last.
        after: likewise of its output.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


def kernel(network: Network, layer: Layer) -> Tensor:
    """Return a layer's weight as (outputs, inputs, *kernel), transposed convolutions included; without groups."""
    weight = network.tensor(str(layer.weight.target))
    return weight.transpose(0, 1) if layer.op == "conv_transpose" else weight


def pads_unevenly(layer: Layer) -> bool:
    """Whether a layer pads one place more behind than before along some axis, which no number says."""
    if layer.op != "conv" or named_arguments(layer.node)["padding"] != "same":
        return False
    where = geometry(layer.node)
    return any(dilation * (size - 1) % 2 for dilation, size in zip(where.dilation, where.kernel, strict=True))


def bias_of(network: Network, layer: Layer) -> Tensor | None:
    """Return a layer's bias, if it has one."""
    source = constant_source(layer.node.args[2]) if len(layer.node.args) > 2 else None
    return None if source is None else network.tensor(str(source.target))


def walks(network: Network) -> dict[str, Walk]:
    """Return where all layers walk, by name, for one input of the network's own shape."""
    shapes: dict[Node, tuple[int, ...]] = {}
    nodes = {n for layer in network.layers for n in (layer.node, layer.node.args[0]) if isinstance(n, Node)}
    Observed(network, nodes, lambda node, value: shapes.__setitem__(node, tuple(value.shape)))(network.blank())
    found = {}
    for layer in network.layers:
        at = slice(None, -1) if layer.op == "linear" else slice(2, None)
        found[layer.name] = Walk(shapes[layer.node.args[0]][at], shapes[layer.node][at])  # type: ignore[index]
    return found


def chain_macs(layer: Layer, factors: Sequence[Factor], walk: Walk) -> int:
    """Return the multiply-accumulates of a chain of factors in a layer's place, for a batch of one."""
    size, total = list(walk.before), 0
    for factor in factors:
        given = math.prod(size)
        for axis in factor.axes:
            size[axis] = walk.after[axis]
        walked = layer.op == "conv_transpose" and bool(factor.axes)
        total += factor.weight.numel() * (given if walked else math.prod(size))
    return total


def links(layer: Layer, factors: Sequence[Factor], bias: Tensor | None, dtype: torch.dtype) -> list[Link]:
    """Return factors of a layer's kernel as layers that compute what it computes, bias included.

    A factor has the layer's stride, padding, dilation and output padding along the axes that it walks. Factors that
    walk along none are plain 1×1 convolutions. Nothing is added between them, so that zeros of the padding stay zeros.

    Args:
        layer: without groups.
        factors: of its kernel.
        bias: for the last.
        dtype: of the weights.
    """
    return [_link(layer, factor, bias if factor is factors[-1] else None, dtype) for factor in factors]


def applied(chain: Sequence[Link], x: Tensor) -> Tensor:
    """Return what a chain computes."""
    for link in chain:
        x = link.target(x, link.weight, link.bias, *link.settings)
    return x


def _link(layer: Layer, factor: Factor, bias: Tensor | None, dtype: torch.dtype) -> Link:
    weight = factor.weight.to(dtype)
    if layer.op == "linear":
        return Link(factor.name, aten.linear.default, weight, bias)
    named, where = named_arguments(layer.node), geometry(layer.node)
    dims = len(where.kernel)

    def along(values: Sequence[int], otherwise: int) -> list[int]:
        return [value if axis in factor.axes else otherwise for axis, value in enumerate(values)]

    stride, padding, dilation = along(where.stride, 1), along(where.padding, 0), along(where.dilation, 1)
    groups = factor.outputs if factor.depthwise else 1
    if kind(layer.node) == "conv" or not factor.axes:
        return Link(factor.name, CONVOLUTIONS[dims], weight.contiguous(), bias, (stride, padding, dilation, groups))
    given = named["output_padding"]
    more = along([int(v) for v in (given * dims if len(given) == 1 else given)], 0)
    weight = weight if factor.depthwise else weight.transpose(0, 1)
    settings = (stride, padding, more, groups, dilation)
    return Link(factor.name, TRANSPOSED[dims], weight.contiguous(), bias, settings)
