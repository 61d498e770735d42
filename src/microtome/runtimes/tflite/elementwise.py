"""Functions of single values, and of two: activations, sums, products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from microtome.graph.watching.moments import named_arguments
from microtome.runtimes.tflite.model import Grid, grid_of
from microtome.runtimes.tflite.writer import Limits, Write, Writer, first_input, limits
from microtome.types import Array

# What TensorFlow Lite's integer kernels give these functions for a grid, whatever comes in.
FIXED = {
    "LOGISTIC": grid_of(1 / 256, -128),
    "SOFTMAX": grid_of(1 / 256, -128),
    "TANH": grid_of(1 / 128, 0),
}


def function(code: str, **options: Any) -> Write:
    """Return what writes a function of single values."""

    def write(w: Writer, node: Node) -> None:
        x = first_input(node)
        last, grid = w.is_last(x), w.wanted(node)
        integer = w.integer(x) and grid is not None
        tensor = w.read(x, last=last, integer=integer)
        w.put(node, _applied(w, code, [tensor], node, last=last, grid=grid if integer else None, **options), last=last)

    return write


def real_function(code: str) -> Write:
    """Return what writes a function of single values that has no integer kernel."""

    def write(w: Writer, node: Node) -> None:
        x = first_input(node)
        last = w.is_last(x)
        output = w.output(node, last=last, grid=None)
        w.put(node, w.model.operator(code, [w.read(x, last=last, integer=False)], output), last=last)

    return write


def _applied(
    w: Writer, code: str, inputs: Sequence[int], node: Node, *, last: bool, grid: Grid | None, **options: Any
) -> int:
    """Write an operator; where its integer kernel has a grid of its own, that and a rounding to the wanted one."""
    fixed = FIXED.get(code) if grid is not None else None
    output = w.output(node, last=last, grid=fixed or grid)
    found = w.model.operator(code, inputs, output, **options)
    return found if fixed is None or grid is None else w.on(found, grid)


def two(code: str) -> Write:
    """Return what writes a sum, difference, product, quotient, maximum or minimum of two values."""

    def write(w: Writer, node: Node) -> None:
        if node.kwargs.get("alpha", 1) != 1 or (len(node.args) > 2 and node.args[2] != 1):
            raise w.refusal(node, "a sum with a factor has no form in TensorFlow Lite")
        fuses = code in ("ADD", "SUB", "MUL")
        activation, end = w.fused(node) if fuses else (0, node)
        grid = w.wanted(end)
        values = [one for one in node.args[:2] if isinstance(one, Node) and one.op != "get_attr"]
        integer = grid is not None and code != "DIV" and all(w.integer(one) for one in values)
        last = any(w.is_last(one) for one in values)
        rank = len(w.shape(node))
        inputs = [_operand(w, one, rank, last=last, integer=integer) for one in node.args[:2]]
        output = w.output(node, last=last, grid=grid if integer else None)
        options = {"fusedActivationFunction": activation} if fuses or code == "DIV" else {}
        w.put(end, w.model.operator(code, inputs, output, **options), last=last)

    return write


def _operand(w: Writer, value: Any, rank: int, *, last: bool, integer: bool) -> int:
    """Return the tensor of one of two operands, broadcast from the right as TensorFlow Lite does."""
    constant: Array | None = None
    if isinstance(value, Node) and value.op == "get_attr":
        constant = w.array(value)
    elif not isinstance(value, Node) or not w.knows(value):
        constant = np.array(w.number(value), np.float32)
    if constant is not None:
        constant = constant.astype(np.float32)
        if last and constant.ndim:
            filled = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
            constant = np.moveaxis(filled, 1, -1)
        return _integers(w, constant) if integer else w.model.constant("constant", constant)
    own = w.shape(value)
    tensor = w.read(value, last=last and len(own) == rank, integer=integer)
    if last and len(own) != rank and rank >= 3 and len(own) > 0:
        whole = (1,) * (rank - len(own)) + own
        tensor = w.reshaped(tensor, whole, f"{value.name}/whole")
        tensor = w.transposed(tensor, [0, *range(2, rank), 1], f"{value.name}/last")
    return tensor


def _integers(w: Writer, constant: Array) -> int:
    """Return a constant in integers, on the grid from its least to its largest value."""
    low, high = min(float(constant.min()), 0.0), max(float(constant.max()), 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    zero = int(np.clip(np.rint(-128 - low / scale), -128, 127))
    values = np.clip(np.rint(constant / scale) + zero, -128, 127).astype(np.int8)
    return w.model.constant("constant", values, grid_of(scale, zero))


CLAMPS: Mapping[Limits, str] = {(0.0, None): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


def relu(w: Writer, node: Node) -> None:
    """Write a clamp that no operator took into its kernel."""
    found = limits(node)
    code = CLAMPS.get(found) if found else None
    if code is None:
        low, high = found or (None, None)
        raise w.refusal(node, f"a clamp from {low} to {high} has no form in TensorFlow Lite")
    function(code)(w, node)


def leaky_relu(w: Writer, node: Node) -> None:
    """Write a leaky ReLU."""
    function("LEAKY_RELU", alpha=float(named_arguments(node)["negative_slope"]))(w, node)


def prelu(w: Writer, node: Node) -> None:
    """Write a PReLU, with one slope or one per channel: one is a leaky ReLU, which has a fast integer kernel."""
    x, alpha = first_input(node), node.args[1]
    assert isinstance(alpha, Node)
    slopes, grid = w.array(alpha), w.wanted(node)
    assert slopes is not None
    if np.ptp(slopes) == 0:
        function("LEAKY_RELU", alpha=float(slopes.flat[0]))(w, node)
        return
    integer = w.integer(x) and grid is not None
    rank = len(w.shape(x))
    if rank < 3 and slopes.size > 1:
        shape: tuple[int, ...] = (slopes.size,)
    else:
        shape = (*(1,) * (rank - 2), slopes.size)
    slopes = slopes.astype(np.float32).reshape(shape)
    constant = _integers(w, slopes) if integer else w.model.constant("slopes", slopes)
    tensor = w.read(x, last=True, integer=integer)
    output = w.output(node, last=True, grid=grid if integer else None)
    w.put(node, w.model.operator("PRELU", [tensor, constant], output), last=True)


def silu(w: Writer, node: Node) -> None:
    """Write x · sigmoid(x)."""
    x = first_input(node)
    last, grid = w.is_last(x), w.wanted(node)
    integer = w.integer(x) and grid is not None
    tensor = w.read(x, last=last, integer=integer)
    own = FIXED["LOGISTIC"] if integer else None
    gate = w.output(node, last=last, grid=own)
    w.model.operator("LOGISTIC", [tensor], gate)
    output = w.output(node, last=last, grid=grid if integer else None)
    w.put(node, w.model.operator("MUL", [tensor, gate], output, fusedActivationFunction=0), last=last)


def hardsigmoid(w: Writer, node: Node) -> None:
    """Write min(max(x + 3, 0), 6) / 6, in float."""
    x = first_input(node)
    last = w.is_last(x)
    tensor = w.read(x, last=last, integer=False)
    moved_up = w.output(node, last=last, grid=None)
    three, sixth = (w.model.constant("constant", np.array(value, np.float32)) for value in (3.0, 1 / 6))
    w.model.operator("ADD", [tensor, three], moved_up, fusedActivationFunction=3)
    output = w.output(node, last=last, grid=None)
    w.put(node, w.model.operator("MUL", [moved_up, sixth], output, fusedActivationFunction=0), last=last)


def softmax(w: Writer, node: Node) -> None:
    """Write a softmax along one axis."""
    x, rank = first_input(node), len(w.shape(node))
    axis = int(named_arguments(node)["dim"]) % rank
    grid = w.wanted(node)
    integer = w.integer(x) and grid is not None
    last = axis == 1 and rank >= 3
    if not last and axis != rank - 1:
        raise w.refusal(node, "a softmax along an axis that is neither the channels nor the last is not written")
    tensor = w.read(x, last=last, integer=integer)
    found = _applied(w, "SOFTMAX", [tensor], node, last=last, grid=grid if integer else None, beta=1.0)
    w.put(node, found, last=last)


def matmul(w: Writer, node: Node) -> None:
    """Write a product of two computed matrices, in float."""
    one, other = node.args[:2]
    assert isinstance(one, Node)
    assert isinstance(other, Node)
    inputs = [w.read(value, integer=False) for value in (one, other)]
    output = w.output(node, last=False, grid=None)
    w.put(node, w.model.operator("BATCH_MATMUL", inputs, output, adjX=False, adjY=False))
