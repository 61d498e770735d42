"""Layer norms whose output only linear layers read: their features can be scaled and shifted, and both taken back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, is_weighted, kind


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm with weight and bias over the last axis; the linear layers that read it; their weights' names."""

    node: Node
    readers: tuple[Node, ...]
    weights: tuple[str, ...]


def layer_norms(network: Network) -> tuple[LayerNorm, ...]:
    """Return the layer norms that can be scaled: affine, over the last axis, read by linear layers alone."""
    found = []
    for node in network.graph_module.graph.nodes:
        if kind(node) != "layer_norm" or len(node.args) < 4 or not node.users:
            continue
        affine = [constant_source(argument) for argument in node.args[2:4]]
        if any(source is None or len(source.users) > 1 for source in affine) or len(node.args[1]) != 1:
            continue
        readers = tuple(node.users)
        if not all(kind(reader) == "linear" and is_weighted(reader) for reader in readers):
            continue
        sources = [constant_source(reader.args[1]) for reader in readers]
        names = [str(source.target) for source in sources if source is not None and len(source.users) == 1]
        if len(names) == len(readers):
            found.append(LayerNorm(node, readers, tuple(names)))
    return tuple(found)


def scale_layer_norm(network: Network, norm: LayerNorm, scale: Tensor, shift: Tensor | None = None) -> None:
    """Turn a layer norm's output x into (x + shift) / scale, feature by feature, and let its readers take that back.

    Args:
        network: to edit.
        norm: one of `layer_norms(network)`.
        scale: positive, shape (C,).
        shift: shape (C,); None is 0.
    """
    graph_module = network.graph_module
    shift = torch.zeros_like(scale) if shift is None else shift
    gamma, beta = (_value(network, norm.node.args[position]) for position in (2, 3))
    edit.own_constant(graph_module, norm.node, 2, gamma / scale)
    edit.own_constant(graph_module, norm.node, 3, (beta + shift) / scale)
    for reader, name in zip(norm.readers, norm.weights, strict=True):
        weight = network.tensor(name)
        bias = _value(network, reader.args[2]) if len(reader.args) > 2 and reader.args[2] is not None else None
        edit.own_constant(graph_module, reader, 1, weight * scale)
        if bool(shift.any()):
            change = weight @ shift
            edit.set_bias(graph_module, reader, (0 if bias is None else bias) - change, name.removesuffix(".weight"))


def _value(network: Network, argument: object) -> Tensor:
    source = constant_source(argument)
    assert source is not None
    return network.tensor(str(source.target))
