"""Reading the quantizers that stand in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from microtome.graph.network import Layer, Network
from microtome.graph.operators import aten, constant_source, kind
from microtome.types import QParams, QType


@dataclass(frozen=True)
class Quantizer:
    """A quantizer node: what it stands on (`weight` or `activation`), the layer that reads it first, its grid."""

    kind: str
    name: str
    node: Node
    qparams: QParams


def qparams_of(network: Network, node: Node) -> QParams:
    """Return the grid of a quantizer node."""
    if node.target is aten.fake_quantize_per_tensor_affine.default:
        _, scale, zero_point, qmin, qmax = node.args
        qtype = _qtype(int(qmin), int(qmax), int(zero_point), None)  # type: ignore[arg-type]
        return QParams(torch.tensor(float(scale)), torch.tensor(int(zero_point), dtype=torch.int32), qtype)  # type: ignore[arg-type]
    _, scale_node, zero_node, axis, qmin, qmax = node.args
    assert isinstance(scale_node, Node)
    assert isinstance(zero_node, Node)
    zero_points = network.tensor(str(zero_node.target))
    qtype = _qtype(int(qmin), int(qmax), int(zero_points.abs().max()), int(axis))  # type: ignore[arg-type]
    return QParams(network.tensor(str(scale_node.target)), zero_points, qtype)


def weight_quantizer(network: Network, layer: Layer) -> QParams | None:
    """Return the grid of a layer's weight, None if it is in float."""
    return _grid(network, layer.node.args[1])


def input_quantizer(network: Network, layer: Layer) -> QParams | None:
    """Return the grid of a layer's input, None if it is in float.

    Looks through concatenations and the like, whose quantizers stand before them.
    """
    value = layer.node.args[0]
    while isinstance(value, Node) and kind(value) in ("concat", "max_pool", "reshape", "transpose", "pad"):
        inner = value.args[0]
        value = inner[0] if isinstance(inner, list | tuple) else inner
    return _grid(network, value)


def quantizers(network: Network) -> Iterator[Quantizer]:
    """Yield the quantizers in the graph's order, named after the first layer that reads them."""
    readers = _first_readers(network)
    for node in network.graph_module.graph.nodes:
        if kind(node) == "quantizer":
            role = "weight" if constant_source(node) is not None else "activation"
            yield Quantizer(role, readers[node], node, qparams_of(network, node))


def _first_readers(network: Network) -> dict[Node, str]:
    """Return for each node the first layer, in the order of execution, that reads it or what is made of it."""
    layers = network.layers
    positions = {layer.node: position for position, layer in enumerate(layers)}
    first: dict[Node, int] = {}
    for node in reversed(network.graph_module.graph.nodes):
        first[node] = min((positions.get(user, first[user]) for user in node.users), default=len(layers))
    return {node: layers[position].name if position < len(layers) else "" for node, position in first.items()}


def _grid(network: Network, value: object) -> QParams | None:
    return qparams_of(network, value) if isinstance(value, Node) and kind(value) == "quantizer" else None


def _qtype(qmin: int, qmax: int, zero_point: int, axis: int | None) -> QType:
    signed = qmin < 0
    bits = (qmax + 1).bit_length() - 1 + signed
    symmetric = zero_point == 0 if signed else zero_point == (qmax + 1) // 2
    return QType(bits, signed, symmetric, narrow=signed and qmin == -qmax, axis=axis)
