"""Concatenations of what lies channel by channel in memory: an image, and a map with one value per pixel."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, kind
from microtome.graph.rewriting.narrow_convs import shape

LANES = 16  # channels from which on runtimes copy whole vectors per pixel


def planar_concats(network: Network) -> Network:
    """Return the network with such concatenations as those of rows: (N, C, pixels) in place of (N, C, *S).

    Networks that read the image a second time, beside a map made of it (cascades such as the W-Net, refinement steps),
    join both in front of a convolution. Runtimes with channels innermost in memory then copy three bytes and one byte
    per pixel, in turn, which takes longer than the convolution. Rows are joined as two blocks; the numbers are the
    same. Only for network inputs and single channels, which lie that way already, in 2 axes of space or more.
    """
    found = [node.name for node in network.graph_module.graph.nodes if _is_planar(node)]
    if not found:
        return network
    network = network.copy()
    graph = network.graph_module.graph
    for node in [n for n in graph.nodes if n.name in found]:
        _by_rows(graph, node)
    edit.finish(network.graph_module)
    return network


def _is_planar(node: Node) -> bool:
    """Whether a node joins few channels that all lie one after the other in memory."""
    if kind(node) != "concat" or len(node.args) < 2 or node.args[1] != 1 or len(shape(node)) < 4:
        return False
    parts: Any = node.args[0]
    channels = [shape(part)[1] for part in parts]
    if not all(isinstance(count, int) for count in channels) or sum(channels) >= LANES:
        return False
    inputs = [_origin(part).op == "placeholder" for part in parts]
    return any(inputs) and all(own or count == 1 for own, count in zip(inputs, channels, strict=True))


def _by_rows(graph: Graph, node: Node) -> None:
    """Join the parts as (N, C, pixels) and give the result its axes of space back."""
    parts: Any = node.args[0]
    rank, channels = len(shape(node)), int(shape(node)[1])
    with graph.inserting_before(node):
        rows = [graph.call_function(aten.flatten.using_ints, (part, 2)) for part in parts]
        joined = graph.call_function(aten.cat.default, (rows, 1))
        batch, *space = (graph.call_function(aten.sym_size.int, (parts[0], axis)) for axis in (0, *range(2, rank)))
        image = graph.call_function(aten.reshape.default, (joined, [batch, channels, *space]))
    image.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(image)
    graph.erase_node(node)


def _origin(node: Node) -> Node:
    """Return what a quantizer reads, however many stand in a row."""
    while kind(node) in ("quantizer", "identity"):
        node = node.all_input_nodes[0]
    return node
