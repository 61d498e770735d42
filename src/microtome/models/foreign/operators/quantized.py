"""Integers in the file: pairs of QuantizeLinear and DequantizeLinear, and operators that compute in integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.operators.layers import convolved
from microtome.models.foreign.steps import LIMITS, dequantized
from microtome.models.foreign.values import Array, Constant, Grid, Integers, Turned, Value, like

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run


def _grid(run: Run, scale: int, zero: int, axis: int | None, kind: str = "") -> Grid:
    """Return the grid that two inputs of the step give."""
    scales, zeros = run.known(scale).astype(np.float32), run.known(zero) if run.has(zero) else None
    kind = kind or (str(zeros.dtype) if zeros is not None else "uint8")
    if kind not in LIMITS:
        raise run.refuse(f"makes {kind}")
    numbers: Array = np.zeros(scales.shape, np.int32) if zeros is None else zeros.astype(np.int32)
    if scales.size == 1:
        return Grid(scales.reshape(()), numbers.reshape(()), None, *LIMITS[kind])
    return Grid(scales, np.broadcast_to(numbers, scales.shape).astype(np.int32), axis, *LIMITS[kind])


def _quantize(run: Run) -> Value:
    if run.attribute("block_size", 0):
        raise run.refuse("has a scale per block")
    value = run.value(0)
    rank = len(value.order) if isinstance(value, Turned) else value.ndim
    axis = run.attribute("axis", 1) % rank
    kinds = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4"}
    grid = _grid(run, 1, 2, axis, kinds.get(run.attribute("output_dtype", 0), ""))
    return Integers(like(value, lambda x: _rounded(run, x, grid, value)), grid)


def _rounded(run: Run, x: Tensor, grid: Grid, value: Tensor | Turned) -> Tensor:
    from microtome.models.foreign.module import on_grid

    if grid.axis is None:
        return on_grid(x, grid)
    axis = value.axis(grid.axis) if isinstance(value, Turned) else grid.axis
    name = run.step.name
    scale = run.module.parameter(Constant(f"{name}_scale", grid.scale), "buffer")
    zero = run.module.parameter(Constant(f"{name}_zero_point", grid.zero_point), "buffer")
    return torch.fake_quantize_per_channel_affine(x, scale, zero, axis, grid.qmin, grid.qmax)


def _dequantize(run: Run) -> Value:
    value = run.values[0]
    if isinstance(value, Integers):
        grid = _grid(run, 1, 2, value.grid.axis)
        if not grid.same(value.grid):
            raise run.refuse("reads integers by another scale than they were made by")
        return value.value
    raise run.refuse("reads integers that no QuantizeLinear made")


def _weight(run: Run, place: int, axis: int, *, transpose: bool = False) -> Tensor:
    """Return a weight of an integer operator: input `place`, its scale and zero point behind it."""
    inputs = [run.constant(place + k) for k in range(3)]
    if inputs[0] is None or inputs[1] is None:
        raise run.refuse("has a weight that is computed")
    value = dequantized(replace(run.step, attributes={"axis": axis}), inputs)
    return run.module.parameter(value, "integers", (lambda c: c.transposed((1, 0))) if transpose else None)


def _input(run: Run, place: int) -> Tensor:
    value = run.values[place]
    if not isinstance(value, Integers):
        raise run.refuse("reads integers that no QuantizeLinear made")
    return value.value.plain() if isinstance(value.value, Turned) else value.value


def _qlinear_conv(run: Run) -> Value:
    from microtome.models.foreign.module import on_grid

    x, weight = _input(run, 0), _weight(run, 3, 0)
    bias = None
    stored = run.constant(8)
    if stored is not None:
        scale = run.known(1).astype(np.float64).reshape(()) * run.known(4).astype(np.float64).reshape(-1)
        bias = run.made(stored, "bias", lambda a: (a * scale).astype(np.float32))
    grid = _grid(run, 6, 7, None)
    return Integers(on_grid(convolved(run, x, weight, bias), grid), grid)


def _qlinear_matmul(run: Run) -> Value:
    from microtome.models.foreign.module import on_grid

    grid = _grid(run, 6, 7, None)
    if run.constant(3) is not None:
        return Integers(on_grid(F.linear(_input(run, 0), _weight(run, 3, 1, transpose=True)), grid), grid)
    return Integers(on_grid(torch.matmul(_input(run, 0), _input(run, 3)), grid), grid)


def _qlinear_pair(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Run], Value]:
    def run(step: Run) -> Value:
        from microtome.models.foreign.module import on_grid

        grid = _grid(step, 6, 7, None)
        return Integers(on_grid(function(_input(step, 0), _input(step, 3)), grid), grid)

    return run


TABLE: dict[str, Callable[[Run], Value]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "com.microsoft.QLinearAdd": _qlinear_pair(lambda a, b: a + b),
    "com.microsoft.QLinearMul": _qlinear_pair(lambda a, b: a * b),
    "com.microsoft.QuantizeLinear": _quantize,
    "com.microsoft.DequantizeLinear": _dequantize,
}
