"""Scales of an integer layer kept with the layer."""

from __future__ import annotations

from torch.fx import Graph, Node

from microtome.graph.operators import aten

# Far beyond any activation, and finite in float32 and bfloat16.
LARGEST = 1e30


def clipped(graph: Graph, value: Node) -> Node:
    """Return the value behind a clip at ±1e30, which changes nothing; all its readers share it.

    The result of an integer layer is multiplied by one scale per output channel. OpenVINO moves that product behind a
    reduction that follows, where it costs another pass over the image. Through a clip it does not move: layer, scales
    and clip are one kernel.
    """
    known = next((user for user in value.users if is_fence(user)), None)
    if known is not None:
        return known
    readers = list(value.users)
    with graph.inserting_after(value):
        fence = graph.call_function(aten.clamp.default, (value, -LARGEST, LARGEST))
    fence.meta["val"] = value.meta["val"]
    for reader in readers:
        reader.replace_input_with(value, fence)
    return fence


def is_fence(node: Node) -> bool:
    """Whether the node is such a clip."""
    return node.target is aten.clamp.default and tuple(node.args[1:]) == (-LARGEST, LARGEST)
