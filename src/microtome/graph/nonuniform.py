"""Logarithmic and twin grids as nodes of a graph: plain ATen operators, which every file format and runtime has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from microtome.core.attention_formats import LEAST_EXPONENT, LogGrid, TwinGrid
from microtome.graph.operators import aten
from microtome.types import QParams


def insert_uneven(graph_module: GraphModule, value: Node, users: Sequence[Node], grid: LogGrid | TwinGrid) -> Node:
    """Put a grid on the edges from `value` to `users`; return the node that gives the rounded values.

    A twin grid is two quantizers and a choice between them, so that what takes quantizers out of a graph takes these
    out too. A logarithmic one is not known as a quantizer.
    """
    if not users:
        raise ValueError("a grid needs a reader")
    first = min(users)  # nodes compare by their place in the graph
    with graph_module.graph.inserting_before(first):
        result = _log(graph_module, value, grid) if isinstance(grid, LogGrid) else _twin(graph_module, value, grid)
    if "val" in value.meta:
        result.meta["val"] = value.meta["val"]
    for user in users:
        user.replace_input_with(value, result)
    return result


def _log(graph_module: GraphModule, value: Node, grid: LogGrid) -> Node:
    """Do as `core.attention_formats.fake_quantize_log`, to the bit."""

    def call(target: Any, *args: Any) -> Node:
        return graph_module.graph.call_function(target, args)

    logarithm = call(aten.log2.default, call(aten.clamp.default, value, 2.0**LEAST_EXPONENT, 1.0))
    rounded = call(aten.round.default, call(aten.mul.Tensor, logarithm, -grid.steps))
    exponent = call(aten.clamp.default, rounded, grid.offset)
    power = call(aten.exp2.default, call(aten.div.Tensor, exponent, -grid.steps))
    return call(aten.masked_fill.Scalar, power, call(aten.gt.Scalar, exponent, grid.last), 0.0)


def _twin(graph_module: GraphModule, value: Node, grid: TwinGrid) -> Node:
    """Do as `core.attention_formats.fake_quantize_twin`."""
    below, above = (_quantizer(graph_module, value, qparams) for qparams in (grid.below, grid.above))
    choice = graph_module.graph.call_function(aten.lt.Scalar, (value, grid.border))
    return graph_module.graph.call_function(aten.where.self, (choice, below, above))


def _quantizer(graph_module: GraphModule, value: Node, qparams: QParams) -> Node:
    grid = (float(qparams.scale), int(qparams.zero_point), qparams.qtype.qmin, qparams.qtype.qmax)
    node = graph_module.graph.call_function(aten.fake_quantize_per_tensor_affine.default, (value, *grid))
    if "val" in value.meta:
        node.meta["val"] = value.meta["val"]
    return node
