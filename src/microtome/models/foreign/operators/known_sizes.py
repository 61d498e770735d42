"""Sizes and other numbers that a graph computes on the way: on NumPy's arrays, which may hold symbolic sizes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.models.foreign.values import Array

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

INTEGERS = {2, 3, 4, 5, 6, 7, 12, 13}  # TensorProto's numbers of integer types


def _divide(a: Any, b: Any) -> Any:
    whole = isinstance(a, int | np.integer | torch.SymInt) and isinstance(b, int | np.integer | torch.SymInt)
    return a // b if whole else a / b


def _each(function: Callable[..., Any]) -> Callable[[Run], Array]:
    """Return what applies a function to each number."""

    def run(step: Run) -> Array:
        arrays = [step.known(place).astype(object) for place in range(len(step.values))]
        return tidy(np.frompyfunc(function, len(arrays), 1)(*arrays))

    return run


def tidy(values: Any) -> Array:
    """Return an array of plain numbers as such; of symbolic ones as objects."""
    array = np.array(values, dtype=object) if not isinstance(values, np.ndarray) else values
    kinds = {type(n) for n in array.reshape(-1)}
    if array.dtype != object or any(issubclass(k, torch.SymInt | torch.SymFloat | torch.SymBool) for k in kinds):
        return array
    if kinds <= {bool, np.bool_}:
        return array.astype(bool)
    return array.astype(np.int64 if all(issubclass(k, int | np.integer) for k in kinds) else np.float32)


def _float(number: Any) -> Any:
    return torch.sym_float(number) if isinstance(number, torch.SymInt) else float(number)  # type: ignore[no-untyped-call]


def _cast(run: Run) -> Array:
    to = run.attribute("to")
    if to in INTEGERS:
        function: Callable[[Any], Any] = lambda n: n if isinstance(n, torch.SymInt) else int(n)  # noqa: E731
    elif to == 9:
        function = bool
    else:
        function = _float
    return tidy(np.frompyfunc(function, 1, 1)(run.known(0).astype(object)))


def _lower(*numbers: Any) -> Any:
    return functools.reduce(torch.sym_min, numbers)


def _upper(*numbers: Any) -> Any:
    return functools.reduce(torch.sym_max, numbers)


def _gather(run: Run) -> Array:
    return tidy(np.take(run.known(0), run.known(1).astype(np.int64), axis=run.attribute("axis", 0)))


def _concat(run: Run) -> Array:
    arrays = [run.known(place).astype(object) for place in range(len(run.values))]
    return tidy(np.concatenate(arrays, axis=run.attribute("axis")))


def _unsqueeze(run: Run) -> Array:
    array, axes = run.known(0), run.listed("axes", 1) or []
    return np.expand_dims(array, tuple(axes))


def _squeeze(run: Run) -> Array:
    axes = run.listed("axes", 1)
    return np.squeeze(run.known(0), None if axes is None else tuple(axes))


def _slice(run: Run) -> Array:
    array = run.known(0)
    starts, ends = run.listed("starts", 1) or [], run.listed("ends", 2) or []
    axes = run.listed("axes", 3) or list(range(len(starts)))
    steps = (run.sizes(4) if run.has(4) else None) or [1] * len(starts)
    index: list[Any] = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        whole = step < 0 and end < -array.shape[axis]
        index[axis] = slice(start, None if whole else end, step)
    cut: Array = array[tuple(index)]
    return cut


def _reshape(run: Run) -> Array:
    return run.known(0).reshape([int(n) for n in run.sizes(1)])


def _reduce(function: Callable[[Any], Any]) -> Callable[[Run], Array]:
    def run(step: Run) -> Array:
        array, axes = step.known(0).astype(object), step.listed("axes", 1)
        if axes not in (None, [0]) or array.ndim != 1:
            raise step.refuse("reduces several axes of sizes")
        value = np.empty((1,) if step.attribute("keepdims", 1) else (), dtype=object)
        value[...] = function(array.tolist())
        return tidy(value)

    return run


def _constant_of_shape(run: Run) -> Array:
    value = run.attribute("value")
    filled = 0.0 if value is None else _element(value)
    return np.full([int(n) for n in run.sizes(0)], filled)


def _element(value: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(value).reshape(-1)[0]


def _range(run: Run) -> Array:
    start, end, step = (run.known(place).reshape(-1)[0] for place in range(3))
    return (
        np.arange(int(start), int(end), int(step))
        if isinstance(start, int | np.integer)
        else np.arange(start, end, step)
    )


def _expand(run: Run) -> Array:
    array, shape = run.known(0), [int(n) for n in run.sizes(1)]
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, shape))


TABLE: dict[str, Callable[[Run], Array]] = {
    "Add": _each(lambda a, b: a + b),
    "Sub": _each(lambda a, b: a - b),
    "Mul": _each(lambda a, b: a * b),
    "Div": _each(_divide),
    "Mod": _each(lambda a, b: a % b),
    "Neg": _each(lambda a: -a),
    "Abs": _each(abs),
    "Floor": _each(lambda a: a if isinstance(a, torch.SymInt) else float(math.floor(a))),
    "Ceil": _each(lambda a: a if isinstance(a, torch.SymInt) else float(math.ceil(a))),
    "Sqrt": _each(lambda a: a**0.5),
    "Pow": _each(lambda a, b: a**b),
    "Min": _each(_lower),
    "Max": _each(_upper),
    "Equal": _each(lambda a, b: bool(a == b)),
    "Less": _each(lambda a, b: bool(a < b)),
    "Greater": _each(lambda a, b: bool(a > b)),
    "LessOrEqual": _each(lambda a, b: bool(a <= b)),
    "GreaterOrEqual": _each(lambda a, b: bool(a >= b)),
    "And": _each(lambda a, b: bool(a and b)),
    "Or": _each(lambda a, b: bool(a or b)),
    "Not": _each(lambda a: not a),
    "Where": _each(lambda c, a, b: a if c else b),
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Identity": lambda run: run.known(0),
    "ReduceProd": _reduce(math.prod),
    "ReduceSum": _reduce(sum),
    "ReduceMax": _reduce(max),
    "ReduceMin": _reduce(min),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "Transpose": lambda run: run.known(0).transpose(run.attribute("perm")),
}
