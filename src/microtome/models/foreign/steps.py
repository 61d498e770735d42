"""An ONNX file as a list of steps: functions and decided branches put in place, what is constant computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from microtome.errors import ModelError
from microtome.graph.quiet import first_line
from microtome.models.foreign.values import Array, Constant, Grid, as_float32

LIMITS = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int2": (-2, 1),
    "uint2": (0, 3),
}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
KEPT = {"QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", *RANDOM}
OURS = {"", "ai.onnx", "microtome"}


@dataclass(frozen=True)
class Step:
    """One operator of the graph.

    Attributes:
        op: its name; those of other domains have the domain before it.
        name: of the node, or what stands for it.
        inputs: names of values, empty where one is left out.
        outputs: likewise.
        attributes: by name.
        opset: version of its domain.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 0


@dataclass(frozen=True)
class Graph:
    """A whole file.

    Attributes:
        steps: in the order of execution; only those that an output needs.
        constants: by name.
        inputs: names of those that are not constants, with their sizes; None where one is free.
        outputs: names.
        notes: what the user should know.
    """

    steps: tuple[Step, ...]
    constants: Mapping[str, Constant]
    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_graph(model: onnx.ModelProto) -> Graph:
    """Return the steps of a model.

    Raises:
        ModelError: a branch or loop that depends on the image, or an input that is no tensor.
    """
    from onnx import inliner, numpy_helper

    if model.functions:
        model = inliner.inline_local_functions(model)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    graph = model.graph
    constants = {t.name: Constant(t.name, numpy_helper.to_array(t)) for t in graph.initializer}
    if graph.sparse_initializer:
        raise ModelError("the file has sparse tensors, which are not read.", "Store them densely.")
    inputs = {value.name: _sizes(value) for value in graph.input if value.name not in constants}
    outputs = tuple(value.name for value in graph.output)
    steps = list(_steps(graph.node, constants, opsets, ""))
    steps = _needed(steps, outputs)
    used = {name for step in steps for name in step.inputs} | set(outputs)
    floats = {n: replace(c, array=as_float32(c.array)) for n, c in constants.items() if n in used}
    return Graph(tuple(steps), floats, inputs, outputs)


def _sizes(value: Any) -> tuple[int | None, ...]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        what = "a tensor of any number of axes" if kind == "tensor_type" else str(kind)
        raise ModelError(f"the input {value.name!r} is {what}.", "Export it again with an input (N, C, *spatial).")
    sizes = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in sizes)


def _steps(nodes: Sequence[Any], constants: dict[str, Constant], opsets: Mapping[str, int], pre: str) -> Iterator[Step]:
    """Yield the steps that are left when constants are computed; what is computed goes into `constants`."""
    for place, node in enumerate(nodes):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        domain = "" if node.domain in OURS else f"{node.domain}."
        op = f"{domain}{node.op_type}"
        name = node.name or next(iter(node.output))
        step = Step(op, name, tuple(node.input), tuple(node.output), attributes, opsets.get(node.domain, 1))
        known = all(not i or i in constants for i in step.inputs)
        if op == "If" and step.inputs[0] in constants:
            yield from _branch(step, constants, opsets, f"{pre}{place}.")
        elif op == "Identity" and known:
            constants[step.outputs[0]] = constants[step.inputs[0]]
        elif op == "DequantizeLinear" and known:
            constants[step.outputs[0]] = dequantized(step, [constants.get(i) for i in step.inputs])
        elif known and not domain and op not in KEPT and _computed(step, node, constants, opsets):
            continue
        else:
            yield step


def _branch(step: Step, constants: dict[str, Constant], opsets: Mapping[str, int], pre: str) -> Iterator[Step]:
    """Yield the steps of the branch that a constant chooses, its own names made different from others."""
    from onnx import numpy_helper

    taken = bool(constants[step.inputs[0]].array.reshape(-1)[0])
    graph = step.attributes["then_branch" if taken else "else_branch"]
    inner = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    names = {name: f"{name}.{pre}" for name in inner}
    names |= {v.name: o for v, o in zip(graph.output, step.outputs, strict=True) if v.name in inner}
    constants.update({names[t.name]: Constant(t.name, numpy_helper.to_array(t)) for t in graph.initializer})
    nodes = []
    for node in graph.node:
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        renamed.input[:] = [names.get(name, name) for name in node.input]
        renamed.output[:] = [names.get(name, name) for name in node.output]
        nodes.append(renamed)
    for value, output in zip(graph.output, step.outputs, strict=True):
        if value.name not in inner:  # passed on from outside
            nodes.append(onnx.helper.make_node("Identity", [value.name], [output]))
    yield from _steps(nodes, constants, opsets, pre)


def _computed(step: Step, node: Any, constants: dict[str, Constant], opsets: Mapping[str, int]) -> bool:
    """Compute a step whose inputs are constants; whether that went well."""
    first = constants.get(step.inputs[0]) if step.inputs else None
    if first is not None and first.grid is not None:
        moved = _moved(step, first, constants)
        if moved is None:
            return False
        constants[step.outputs[0]] = moved
        return True
    try:
        values = evaluate(node, {i: constants[i].array for i in step.inputs if i}, opsets)
    except Exception:  # the evaluator does not know every operator: it may be translated, or is named later
        return False
    if not all(isinstance(value, np.ndarray) for value in values):
        return False
    label = first.name if first is not None and step.op in ("Reshape", "Transpose", "Cast", "Unsqueeze") else None
    for output, value in zip(step.outputs, values, strict=False):
        constants[output] = Constant(label or output, value)
    return True


def evaluate(node: Any, values: Mapping[str, Array], opsets: Mapping[str, int]) -> list[Any]:
    """Run one node in ONNX's own reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    helper = onnx.helper
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in values.items()}
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "one", inputs, outputs)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(helper.make_model(graph, opset_imports=imports)).run(None, dict(values)))


def _moved(step: Step, value: Constant, constants: Mapping[str, Constant]) -> Constant | None:
    """Return a quantized constant transposed or, where its grid has no axis, reshaped; None for other operators."""
    if step.op == "Transpose":
        return value.transposed(step.attributes.get("perm") or range(value.array.ndim)[::-1])
    if step.op == "Reshape" and value.grid is not None and value.grid.axis is None:
        shape = [n or value.array.shape[k] for k, n in enumerate(constants[step.inputs[1]].array.tolist())]
        return replace(value, array=value.array.reshape(shape))
    return None


def dequantized(step: Step, inputs: Sequence[Constant | None]) -> Constant:
    """Return what integers of the file stand for, with their grid; wide ones, as of a bias, need none."""
    q, scale = inputs[0], inputs[1]
    assert q is not None
    assert scale is not None
    array = q.array
    zero = inputs[2].array if len(inputs) > 2 and inputs[2] is not None else np.zeros((), array.dtype)
    limits = LIMITS.get(str(array.dtype))
    scales, zeros = scale.array.astype(np.float32), zero.astype(np.int32) if limits else zero.astype(np.float32)
    axis = step.attributes.get("axis", 1) % max(array.ndim, 1)
    if step.attributes.get("block_size"):
        size = step.attributes["block_size"]
        wide = [np.repeat(v, size, axis).take(range(array.shape[axis]), axis) if v.ndim else v for v in (scales, zeros)]
        return Constant(q.name, ((array.astype(np.float32) - wide[1]) * wide[0]).astype(np.float32))
    per_channel = scales.size > 1
    if not per_channel:
        scales, zeros = scales.reshape(()), zeros.reshape(())
    shape = [-1 if k == axis else 1 for k in range(array.ndim)] if per_channel else ()
    values = (array.astype(np.float64) - zeros.reshape(shape)) * scales.astype(np.float64).reshape(shape)
    if limits is None:
        return Constant(q.name, values.astype(np.float32))
    zeros = np.broadcast_to(zeros, scales.shape).astype(np.int32)
    return Constant(q.name, values.astype(np.float32), Grid(scales, zeros, axis if per_channel else None, *limits))


def _needed(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """Return the steps that an output needs, in their order."""
    wanted, kept = set(outputs), []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            wanted.update(step.inputs)
            wanted.update(_captured(step))
            kept.append(step)
    return kept[::-1]


def _captured(step: Step) -> set[str]:
    """Return the names that the graphs inside of a step read from outside."""
    names = set()
    for value in step.attributes.values():
        if isinstance(value, onnx.GraphProto):
            names |= {name for node in value.node for name in node.input}
    return names


def told(error: BaseException) -> str:
    """Return an exception's first line without a full stop."""
    return first_line(error).rstrip(".")
