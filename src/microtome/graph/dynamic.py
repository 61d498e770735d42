"""Quantizers whose range is found anew in each run, as plain ATen nodes that compute ONNX's DynamicQuantizeLinear.

Source: ONNX operator reference, DynamicQuantizeLinear: the range is that of the whole tensor, zero included; scale and
zero point as in `core.affine.qparams_from_range`, ties to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from microtome.core.affine import SMALLEST_SCALE
from microtome.graph.operators import aten

CHAIN = (aten.mul.Tensor, aten.sub.Tensor, aten.clamp.default, aten.add.Tensor, aten.round.default, aten.div.Tensor)
"""A dynamic quantizer read backwards, from the rounded value to the value."""


def insert_dynamic_quantizer(graph_module: GraphModule, value: Node, users: Sequence[Node], bits: int) -> Node:
    """Put a dynamic quantizer, unsigned and asymmetric, on the edges from `value` to `users`; return its last node."""
    graph = graph_module.graph
    largest = (1 << bits) - 1

    def call(target: Any, *args: Any) -> Node:
        return graph.call_function(target, args)

    with graph.inserting_before(min(users)):
        low = call(aten.clamp.default, call(aten.min.default, value), None, 0.0)
        high = call(aten.clamp.default, call(aten.max.default, value), 0.0)
        span = call(aten.div.Tensor, call(aten.sub.Tensor, high, low), float(largest))
        scale = call(aten.masked_fill.Scalar, span, call(aten.lt.Scalar, span, SMALLEST_SCALE), 1.0)
        below = call(aten.round.default, call(aten.div.Tensor, call(aten.neg.default, low), scale))
        zero_point = call(aten.clamp.default, below, 0.0, float(largest))
        steps = call(aten.round.default, call(aten.div.Tensor, value, scale))
        integer = call(aten.clamp.default, call(aten.add.Tensor, steps, zero_point), 0.0, float(largest))
        result = call(aten.mul.Tensor, call(aten.sub.Tensor, integer, zero_point), scale)
    if "val" in value.meta:
        result.meta["val"] = value.meta["val"]
    for user in users:
        user.replace_input_with(value, result)
    return result


def dynamic_bits(node: Node) -> int | None:
    """Return the width of the dynamic quantizer whose last node this is; None if it is something else."""
    found = _chain(node)
    if found is None:
        return None
    multiply, subtract, clamp, add, _, divide = found
    scale, zero_point = multiply.args[1], subtract.args[1]
    if divide.args[1] is not scale or add.args[1] is not zero_point or not _is_range_of(divide.args[0], scale):
        return None
    largest = clamp.args[2]
    return int(largest).bit_length() if isinstance(largest, int | float) else None


def _chain(node: Node) -> list[Node] | None:
    """Follow first arguments backwards as long as the operators are those of a dynamic quantizer."""
    found: list[Node] = []
    current: Any = node
    for target in CHAIN:
        if not isinstance(current, Node) or current.target is not target:
            return None
        found.append(current)
        current = current.args[0]
    return found


def _is_range_of(value: object, scale: object) -> bool:
    """Whether a scale was made of the least and the greatest of a value."""
    found: list[Any] = [scale]
    for position, target in ((0, aten.masked_fill.Scalar), (0, aten.div.Tensor), (0, aten.sub.Tensor)):
        node = found[-1]
        if not isinstance(node, Node) or node.target is not target:
            return False
        found.append(node.args[position])
    difference = scale.args[0].args[0]  # type: ignore[attr-defined]
    ends = [side.args[0] for side in difference.args]
    return [(end.target, end.args[0]) for end in ends] == [(aten.max.default, value), (aten.min.default, value)]
