"""What each layer costs: its weights and its multiplications."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.fx import Node

from microtome.graph.network import Layer, Network
from microtome.graph.watching.observe import Observed


@dataclass(frozen=True)
class LayerSize:
    """A layer's shapes and costs for a batch of one.

    Attributes:
        name: of the layer.
        weight: shape of its weight.
        output: shape of its output.
        weights: number of its weights.
        macs: multiply-accumulates.
    """

    name: str
    weight: tuple[int, ...]
    output: tuple[int, ...]
    weights: int
    macs: int


def layer_sizes(network: Network) -> tuple[LayerSize, ...]:
    """Return the sizes of all layers, in order, for one input of the network's own shape."""
    shapes: dict[Node, tuple[int, ...]] = {}
    nodes = {n for layer in network.layers for n in (layer.node, layer.node.args[0]) if isinstance(n, Node)}
    Observed(network, nodes, lambda node, value: shapes.__setitem__(node, tuple(value.shape)))(network.blank())
    sizes = []
    for layer in network.layers:
        weight = tuple(network.tensor(str(layer.weight.target)).shape)
        output, given = shapes[layer.node], shapes[layer.node.args[0]]  # type: ignore[index]
        count = math.prod(weight)
        sizes.append(LayerSize(layer.name, weight, output, count, count * _positions(layer, output, given)))
    return tuple(sizes)


def _positions(layer: Layer, output: tuple[int, ...], given: tuple[int, ...]) -> int:
    """Return how often each weight is used: at every output position (transposed convolutions: every input position).

    Grouped weights are stored without the zeros between the groups, so that this holds for them too.
    """
    if layer.op == "linear":
        return math.prod(output[:-1])
    return math.prod((given if layer.op == "conv_transpose" else output)[2:])
