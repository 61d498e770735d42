"""Operators that exporters took apart, put together again: what methods and runtimes know stays one operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from microtome.models.foreign.steps import Graph, Step
from microtome.models.foreign.values import Constant


@dataclass(frozen=True)
class View:
    """A graph from which a pattern is read: who makes a value, and who reads it."""

    constants: Mapping[str, Constant]
    makers: Mapping[str, Step]
    readers: Mapping[str, tuple[Step, ...]]

    def maker(self, name: str, op: str) -> Step | None:
        """Return the step that makes a value, if it is of this kind."""
        step = self.makers.get(name)
        return step if step is not None and step.op == op else None

    def only_reader(self, step: Step, op: str) -> Step | None:
        """Return the only step that reads what a step makes, if it is of this kind."""
        readers = self.readers.get(step.outputs[0], ())
        return readers[0] if len(readers) == 1 and readers[0].op == op else None

    def number(self, name: str) -> float | None:
        """Return a constant of one value."""
        constant = self.constants.get(name)
        return float(constant.array.reshape(-1)[0]) if constant is not None and constant.array.size == 1 else None

    def array(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
        """Return the values of a constant."""
        constant = self.constants.get(name)
        return None if constant is None or constant.grid is not None else constant.array

    def with_number(self, step: Step | None, value: float) -> str | None:
        """Return the other input of a step of two, one of which is this number."""
        if step is None or len(step.inputs) != 2:
            return None
        for place in (0, 1):
            number = self.number(step.inputs[place])
            if number is not None and math.isclose(number, value, rel_tol=1e-3):
                return step.inputs[1 - place]
        return None

    def beside(self, step: Step, known: str) -> str | None:
        """Return the other input of a step of two."""
        return next((name for name in step.inputs if name != known), known) if known in step.inputs else None


Found = tuple[Step, Sequence[Step]]  # the step that comes in their place, and those that go


def put_together(graph: Graph) -> Graph:
    """Return the graph with what exporters took apart as one step."""
    for pattern in (_linear_bias, _group_norm, _gelu, _layer_norm, _roll, _repeat, _repeats, _repeats):
        graph = _apply(graph, pattern)
    return graph


def _apply(graph: Graph, pattern: Callable[[View, Step], Found | None]) -> Graph:
    readers: dict[str, tuple[Step, ...]] = {}
    for step in graph.steps:
        for name in set(step.inputs):
            readers[name] = (*readers.get(name, ()), step)
    end = Step("output", "", graph.outputs, ())
    for name in graph.outputs:
        readers[name] = (*readers.get(name, ()), end)
    makers = {name: step for step in graph.steps for name in step.outputs}
    view = View(graph.constants, makers, readers)
    places: dict[int, Step] = {}  # the last step of a pattern → what comes in its place
    gone: set[int] = set()
    for step in graph.steps:
        found = pattern(view, step)
        if found is None or gone & {id(one) for one in found[1]}:
            continue
        gone.update(id(one) for one in found[1])
        places[id(found[1][-1])] = found[0]
    steps = [places.get(id(step), step) for step in graph.steps if id(step) not in gone or id(step) in places]
    return replace(graph, steps=tuple(steps))


def _linear_bias(view: View, step: Step) -> Found | None:
    """MatMul with a matrix of the file, and the sum with a bias behind it."""
    if step.op != "MatMul":
        return None
    matrix, add = view.constants.get(step.inputs[1]), view.only_reader(step, "Add")
    if matrix is None or matrix.array.ndim != 2 or add is None:
        return None
    name = view.beside(add, step.outputs[0])
    bias = view.array(name or "")
    if bias is None or bias.shape != (matrix.array.shape[1],):
        return None
    return replace(step, inputs=(*step.inputs, name or ""), outputs=add.outputs), (step, add)


def _group_norm(view: View, step: Step) -> Found | None:
    """Reshape to groups, InstanceNormalization that scales nothing, Reshape back, and scale and shift per channel."""
    if step.op != "InstanceNormalization":
        return None
    before, after = view.maker(step.inputs[0], "Reshape"), view.only_reader(step, "Reshape")
    scale, shift = view.array(step.inputs[1]), view.array(step.inputs[2])
    if before is None or after is None or scale is None or shift is None or len(view.readers[before.outputs[0]]) != 1:
        return None
    shape = view.array(before.inputs[1])
    if shape is None or shape.size != 3 or int(shape[1]) != scale.size or int(shape[2]) != -1:
        return None
    if not (np.all(scale == 1) and np.all(shift == 0)):
        return None
    back = view.maker(after.inputs[1], "Shape")
    if (back is None or back.inputs[0] != before.inputs[0]) and view.array(after.inputs[1]) is None:
        return None
    attributes = {"num_groups": scale.size, "epsilon": step.attributes.get("epsilon", 1e-5)}
    made = Step("GroupNormalization", step.name, (before.inputs[0],), after.outputs, attributes, 21)
    gone = [before, step, after]
    for op in ("Mul", "Add"):
        last = view.only_reader(gone[-1], op)
        name = view.beside(last, gone[-1].outputs[0]) if last is not None else None
        array = view.array(name or "")
        if last is None or array is None or array.ndim == 0 or array.shape[0] != array.size or array.size == 1:
            break
        made = replace(made, inputs=(*made.inputs, name or ""), outputs=last.outputs)
        gone.append(last)
    return made, gone


def _gelu(view: View, step: Step) -> Found | None:
    """x · ½ · (1 + erf(x / √2)), the factors in any order."""
    if step.op != "Erf":
        return None
    scaled = view.makers.get(step.inputs[0])
    if scaled is None or scaled.op not in ("Div", "Mul") or len(view.readers[scaled.outputs[0]]) != 1:
        return None
    x = view.with_number(scaled, math.sqrt(2) if scaled.op == "Div" else math.sqrt(0.5))
    plus = view.only_reader(step, "Add")
    if x is None or view.with_number(plus, 1.0) != step.outputs[0] or plus is None:
        return None
    product = view.only_reader(plus, "Mul")
    if product is None:
        return None
    other = view.beside(product, plus.outputs[0])
    gone = [scaled, step, plus, product]
    if other == x:
        half = view.only_reader(product, "Mul")
        if half is None or view.with_number(half, 0.5) != product.outputs[0]:
            return None
        gone.append(half)
    elif view.number(other or "") == 0.5:  # ½ · (1 + erf) first
        last = view.only_reader(product, "Mul")
        if last is None or view.beside(last, product.outputs[0]) != x:
            return None
        gone.append(last)
    else:
        half = view.maker(other or "", "Mul")
        if half is None or view.with_number(half, 0.5) != x or len(view.readers[half.outputs[0]]) != 1:
            return None
        gone.insert(0, half)
    return Step("Gelu", step.name, (x,), gone[-1].outputs, {}, 20), gone


def _layer_norm(view: View, step: Step) -> Found | None:
    """(x − mean) / √(mean of squares + ε), scaled and shifted, over the last axis."""
    if step.op != "ReduceMean" or not _last_axis(view, step):
        return None
    centred = next((s for s in view.readers.get(step.outputs[0], ()) if s.op == "Sub"), None)
    x = step.inputs[0]
    if centred is None or centred.inputs != (x, step.outputs[0]):
        return None
    inner = view.readers.get(centred.outputs[0], ())
    square = next((s for s in inner if s.op == "Pow" and view.number(s.inputs[1]) == 2), None)
    square = square or next((s for s in inner if s.op == "Mul" and s.inputs[0] == s.inputs[1]), None)
    division = next((s for s in inner if s.op == "Div" and s.inputs[0] == centred.outputs[0]), None)
    mean = None if square is None else view.only_reader(square, "ReduceMean")
    plus = None if mean is None else view.only_reader(mean, "Add")
    root = None if plus is None else view.only_reader(plus, "Sqrt")
    if square is None or division is None or mean is None or plus is None or root is None or len(inner) != 2:
        return None
    name = view.beside(plus, mean.outputs[0])
    epsilon = view.number(name or "")
    if division.inputs[1] != root.outputs[0] or epsilon is None or not _last_axis(view, mean):
        return None
    if len(view.readers[step.outputs[0]]) != 1 or len(view.readers[root.outputs[0]]) != 1:
        return None
    made = Step("LayerNormalization", step.name, (x,), division.outputs, {"axis": -1, "epsilon": epsilon}, 17)
    gone = [step, centred, square, mean, plus, root, division]
    for op in ("Mul", "Add"):
        last = view.only_reader(gone[-1], op)
        other = view.beside(last, gone[-1].outputs[0]) if last is not None else None
        array = view.array(other or "")
        if last is None or array is None or array.ndim != 1 or array.size == 1:
            break
        made = replace(made, inputs=(*made.inputs, other or ""), outputs=last.outputs)
        gone.append(last)
    return made, gone


def _last_axis(view: View, step: Step) -> bool:
    axes = step.attributes.get("axes")
    if axes is None and len(step.inputs) > 1:
        array = view.array(step.inputs[1])
        axes = None if array is None else array.reshape(-1).tolist()
    return axes is not None and list(axes) == [-1] and step.attributes.get("keepdims", 1) == 1


def _roll(view: View, step: Step) -> Found | None:
    """The end of an axis put before its beginning."""
    if step.op != "Concat" or len(step.inputs) != 2:
        return None
    first, second = (view.maker(name, "Slice") for name in step.inputs)
    if first is None or second is None or first.inputs[0] != second.inputs[0]:
        return None
    parts = [_cut(view, part) for part in (first, second)]
    if None in parts or any(len(view.readers[part.outputs[0]]) != 1 for part in (first, second)):
        return None
    (start, end, axis), (start_2, end_2, axis_2) = parts  # type: ignore[misc]
    if (
        axis != axis_2
        or axis != step.attributes["axis"]
        or start_2 != 0
        or end < 1 << 30
        or start != end_2
        or not start
    ):
        return None
    attributes = {"shifts": -start, "axes": axis}
    return Step("microtome.Roll", step.name, (first.inputs[0],), step.outputs, attributes), (first, second, step)


def _cut(view: View, step: Step) -> tuple[int, int, int] | None:
    """Return start, end and axis of a slice along one axis."""
    arrays = [view.array(name) for name in step.inputs[1:]]
    if len(arrays) < 3 or any(array is None or array.size != 1 for array in arrays):
        return None
    values = [int(array.reshape(-1)[0]) for array in arrays if array is not None]
    if len(values) == 4 and values[3] != 1:
        return None
    return values[0], values[1], values[2]


def _repeat(view: View, step: Step) -> Found | None:
    """A new axis, expanded, and taken into the one before it: each value repeated, as Keras enlarges images."""
    if step.op != "Unsqueeze" or len(step.inputs) != 2:
        return None
    axes, expand = view.array(step.inputs[1]), view.only_reader(step, "Expand")
    if axes is None or axes.size != 1 or expand is None:
        return None
    shape, reshape = view.array(expand.inputs[1]), view.only_reader(expand, "Reshape")
    axis = int(axes.reshape(-1)[0])
    if shape is None or reshape is None or not 0 < axis < shape.size or any(np.delete(shape, axis) != 1):
        return None
    target = view.array(reshape.inputs[1])
    if target is None or target.size != shape.size - 1:
        return None
    attributes = {"factors": ((axis - 1, int(shape[axis])),)}
    return Step("microtome.Repeat", step.name, (step.inputs[0],), reshape.outputs, attributes), (step, expand, reshape)


def _repeats(view: View, step: Step) -> Found | None:
    """Repeats along several axes, as one."""
    after = view.only_reader(step, "microtome.Repeat") if step.op == "microtome.Repeat" else None
    if after is None:
        return None
    factors = (*step.attributes["factors"], *after.attributes["factors"])
    return replace(step, outputs=after.outputs, attributes={"factors": factors}), (step, after)
