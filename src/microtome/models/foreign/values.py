"""What flows through an ONNX graph while it runs as PyTorch: tensors, constants, sizes, integers with their grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of integers: value = (q − zero_point) · scale; per tensor, or per index of `axis`.

    Attributes:
        scale: float32, () or (C,).
        zero_point: int32, likewise.
        axis: which axis C counts; None is per tensor.
        qmin: the smallest integer.
        qmax: the largest.
    """

    scale: Array
    zero_point: Array
    axis: int | None
    qmin: int
    qmax: int

    def same(self, other: Grid) -> bool:
        """Whether integers of one mean the same in the other."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of the file, or one that follows from such.

    Attributes:
        name: its name in the file.
        array: its values; what integers stand for, where there is a grid.
        grid: the grid on which they lie in the file.
    """

    name: str
    array: Array
    grid: Grid | None = None

    def transposed(self, order: Sequence[int]) -> Constant:
        """Return it with its axes in another order."""
        grid = self.grid
        if grid is not None and grid.axis is not None:
            grid = replace(grid, axis=list(order).index(grid.axis))
        return Constant(f"{self.name}_t", np.ascontiguousarray(self.array.transpose(order)), grid)


@dataclass(eq=False)
class Turned:
    """A tensor whose axes the graph has in another order: axis i of the graph's is axis `order[i]` of `tensor`.

    Transpositions are only noted, and carried out where an operator needs them. So a graph with channels last, whose
    convolutions stand between two of them, comes out with channels first and without any.
    """

    tensor: Tensor
    order: tuple[int, ...]
    done: Tensor | None = field(default=None, repr=False)

    def plain(self) -> Tensor:
        """Carry the transposition out."""
        if self.done is None:
            self.done = self.tensor.permute(self.order)
        return self.done

    def axis(self, axis: int) -> int:
        """Return which axis of `tensor` an axis of the graph's is."""
        return self.order[axis % len(self.order)]


@dataclass(frozen=True, eq=False)
class Integers:
    """What QuantizeLinear makes: the values that its integers stand for, and their grid."""

    value: Tensor | Turned
    grid: Grid


# Sizes and other small numbers that the graph computes on the way are arrays: of integers, or of torch's symbolic ones.
Value = Tensor | Turned | Integers | Constant | Array | None


def turned(value: Tensor | Turned, order: Sequence[int]) -> Tensor | Turned:
    """Return a value with its axes in another order."""
    if isinstance(value, Turned):
        order = [value.order[axis] for axis in order]
        value = value.tensor
    return value if list(order) == list(range(len(order))) else Turned(value, tuple(order))


def inverse(order: Sequence[int]) -> list[int]:
    """Return the order that undoes another one."""
    return [list(order).index(axis) for axis in range(len(order))]


def like(value: Tensor | Turned, function: Callable[[Tensor], Tensor]) -> Tensor | Turned:
    """Apply what does the same wherever an axis stands."""
    return Turned(function(value.tensor), value.order) if isinstance(value, Turned) else function(value)


def is_known(value: Value) -> bool:
    """Whether a value is numbers and not tensors that run through the network."""
    return isinstance(value, Constant | np.ndarray)


def numbers(value: Value) -> Array:
    """Return the array of a known value."""
    assert isinstance(value, Constant | np.ndarray)
    return value.array if isinstance(value, Constant) else value


def whole(value: Value) -> list[Any]:
    """Return a known value as a list of integers, symbolic ones among them."""
    return [n if isinstance(n, torch.SymInt) else int(n) for n in numbers(value).reshape(-1)]


def as_float32(array: Array) -> Array:
    """Return floats as float32 and integers as they are."""
    is_float = array.dtype.kind == "f" or str(array.dtype) in ("bfloat16", "float16")
    return array.astype(np.float32) if is_float and array.dtype != np.float32 else array
