"""Norms over space as statistics of channels, then one scale and one shift: no reshape, no second copy of the image."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, kind
from microtome.graph.rewriting.scale_barrier import clipped


def norms_by_channel(network: Network, kinds: frozenset[str] = frozenset({"group_norm"})) -> Network:
    """Return the network with norms over space computed channel by channel; the same one where there are none.

    Group norm (Wu and He, ECCV 2018, equation 1): a runtime that keeps channels innermost has to turn the whole image
    for the usual form, which reshapes channels into groups; twice per norm. Here the mean and the second moment of each
    channel are reductions over space; only they, (N, C) numbers, are joined within groups; and the norm becomes
    x · a + b with a and b per channel. Instance norm is the same with one channel per group.

    A barrier (`rewriting.scale_barrier`) keeps the scales of an integer layer from moving behind the reductions.

    Args:
        network: with quantizers or without.
        kinds: `group_norm`, `instance_norm` or both.
    """
    if not any(_norm(node, kinds) for node in network.graph_module.graph.nodes):
        return network
    network = network.copy()
    for node in list(network.graph_module.graph.nodes):
        norm = _norm(node, kinds)
        if norm is not None:
            _rewrite(network, network.graph_module.graph, norm)
    edit.finish(network.graph_module)
    return network


@dataclass(frozen=True)
class _Norm:
    """A norm over an image or a volume."""

    node: Node
    groups: int
    weight: Node | None
    bias: Node | None
    epsilon: float


def _norm(node: Node, kinds: frozenset[str]) -> _Norm | None:
    """Return what a node is, if it is such a norm."""
    if kind(node) not in kinds:
        return None
    value = node.args[0]
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), Tensor) or value.meta["val"].ndim < 4:
        return None
    if kind(node) == "group_norm":
        weight, bias = _argument(node, 2, "weight", None), _argument(node, 3, "bias", None)
        return _Norm(node, int(node.args[1]), weight, bias, float(_argument(node, 4, "eps", 1e-5)))  # type: ignore[arg-type]
    if node.args[5] is not True:  # running statistics
        return None
    channels = int(value.meta["val"].shape[1])
    weight, bias = _argument(node, 1, "weight", None), _argument(node, 2, "bias", None)
    return _Norm(node, channels, weight, bias, float(_argument(node, 7, "eps", 1e-5)))


def _rewrite(network: Network, graph: Graph, norm: _Norm) -> None:
    node, value = norm.node, norm.node.args[0]
    assert isinstance(value, Node)
    shape = value.meta["val"].shape
    space = list(range(2, len(shape)))
    size = int(shape[1]) // norm.groups
    average = None
    if size > 1:
        members = torch.kron(torch.eye(norm.groups), torch.full((size, size), 1 / size)).to(network.device)
        average = edit.add_constant(network.graph_module, f"{node.name}_average", members, weight=False)
    with graph.inserting_before(node):

        def call(target: Any, *arguments: Any) -> Node:
            return graph.call_function(target, arguments)

        def joined(moment: Node) -> Node:
            return moment if average is None else call(aten.matmul.default, moment, average)

        x = clipped(graph, value)
        mean = joined(call(aten.mean.dim, x, space))
        root = call(aten.linalg_vector_norm.default, x, 2, space)
        second = joined(call(aten.div.Tensor, call(aten.mul.Tensor, root, root), _count(network, graph, x, shape)))
        variance = call(aten.sub.Tensor, second, call(aten.mul.Tensor, mean, mean))
        # Rounding can leave the variance of a constant image just below zero.
        positive = call(aten.clamp.default, variance, 0.0)
        scale = call(aten.rsqrt.default, call(aten.add.Tensor, positive, norm.epsilon))
        if norm.weight is not None:
            scale = call(aten.mul.Tensor, scale, norm.weight)
        shift = call(aten.neg.default, call(aten.mul.Tensor, mean, scale))
        if norm.bias is not None:
            shift = call(aten.add.Tensor, shift, norm.bias)
        for _ in space:
            scale, shift = call(aten.unsqueeze.default, scale, -1), call(aten.unsqueeze.default, shift, -1)
        result = call(aten.add.Tensor, call(aten.mul.Tensor, x, scale), shift)
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _count(network: Network, graph: Graph, x: Node, shape: Any) -> Any:
    """Return the number of pixels per channel, computed where sizes are free."""
    if not any(free for port in network.inputs for free in port.dynamic[1:]):
        return prod(int(n) for n in shape[2:])
    sizes = [graph.call_function(aten.sym_size.int, (x, axis)) for axis in range(2, len(shape))]
    count = sizes[0]
    for other in sizes[1:]:
        count = graph.call_function(operator.mul, (count, other))
    return count


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    value = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    source = constant_source(value)
    return value if source is None else source
