"""Dynamic quantizers in an ONNX file: their plain nodes become DynamicQuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

LARGEST = 255.0  # DynamicQuantizeLinear has 8 bits, unsigned

# What `graph.dynamic` inserts, read backwards along first inputs: from the rounded value, and from the scale.
VALUE_CHAIN = ("Mul", "Sub", "Clip", "Add", "Round", "Div")
SCALE_CHAIN = ("Where", "Div", "Sub", "Clip", "ReduceMax")


def fold_dynamic_ranges(model: onnx.ModelProto) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Replace the nodes of each dynamic quantizer of 8 bits, in place; others stay as they are."""
    from onnx import helper

    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = [(node, _dynamic_value(node, producers, constants)) for node in graph.node if node.op_type == "Mul"]
    found = [(end, value) for end, value in found if value is not None]
    for end, value in found:
        result = end.output[0]
        names = [f"{result}_{part}" for part in ("integers", "scale", "zero_point")]
        position = list(graph.node).index(end)
        graph.node.remove(end)
        graph.node.insert(position, helper.make_node("DynamicQuantizeLinear", [value], names, f"{result}_quantize"))
        graph.node.insert(position + 1, helper.make_node("DequantizeLinear", names, [result], f"{result}_dequantize"))
    if found:
        _drop_unused(graph)


def _dynamic_value(end: Any, producers: dict[str, Any], constants: dict[str, Any]) -> str | None:
    """Return the value that is quantized dynamically if `end` is the last node of that; else None."""
    from onnx import numpy_helper

    chain = _follow(end, VALUE_CHAIN, producers)
    if chain is None:
        return None
    multiply, subtract, clip, add, _, divide = chain
    value, scale, zero_point = divide.input[0], multiply.input[1], subtract.input[1]
    if divide.input[1] != scale or add.input[1] != zero_point or clip.input[2] not in constants:
        return None
    if float(numpy_helper.to_array(constants[clip.input[2]])) != LARGEST or scale not in producers:
        return None
    range_chain = _follow(producers[scale], SCALE_CHAIN, producers, last_of="Where")
    if range_chain is None:
        return None
    lowest = producers.get(range_chain[2].input[1])
    lowest = producers.get(lowest.input[0]) if lowest is not None else None
    if lowest is None or lowest.op_type != "ReduceMin" or not lowest.input[0] == range_chain[-1].input[0] == value:
        return None
    return str(value)


def _follow(node: Any, kinds: tuple[str, ...], producers: dict[str, Any], last_of: str = "") -> list[Any] | None:
    """Walk back from a node along first inputs; None where an operator is not the one expected."""
    found: list[Any] = []
    for kind in kinds:
        if node is None or node.op_type != kind:
            return None
        found.append(node)
        node = producers.get(node.input[-1 if kind == last_of else 0])
    return found


def _drop_unused(graph: Any) -> None:
    """Remove nodes and constants that nobody reads."""
    used = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if used & set(node.output):
            used.update(node.input)
        else:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
