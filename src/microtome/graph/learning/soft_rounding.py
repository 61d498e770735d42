"""Fake-quantizers for reconstruction: a weight between its two neighbours, an activation that is rounded in part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from microtome.core.affine import dequantize
from microtome.core.rounding import logits_of, rectified_sigmoid
from microtome.graph.learning.learned_grids import Grid, LearnedGrid
from microtome.types import QParams


class SoftWeight(Grid):
    """A weight between two neighbours on its grid; the share of each is learned.

    Attributes:
        off: the weight stays in float.
        hard: each weight takes the neighbour that it is nearer to.
    """

    floor: Tensor

    def __init__(self, qparams: QParams, weight: Tensor, *, zeros: bool = False) -> None:
        """Start where the float weight is: between what rounding down and up would give, by its fraction.

        With `zeros`, a weight that is zero stays zero.
        """
        super().__init__()
        self.qtype, self._qparams = qparams.qtype, qparams
        shape = [-1 if axis == qparams.qtype.axis else 1 for axis in range(weight.ndim)]
        self._scale, self._zero = qparams.scale.reshape(shape), qparams.zero_point.reshape(shape)
        steps = weight.detach() / self._scale
        self.register_buffer("floor", steps.floor())
        self.logits = nn.Parameter(logits_of((steps - steps.floor()).clamp(1e-4, 1 - 1e-4)))
        self._alive = (weight.detach() != 0).to(weight.dtype) if zeros else None
        self.off = self.hard = False

    @property
    def capacity(self) -> int:
        """Bits that the weight takes."""
        return self.logits.numel() * self.qtype.bits

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is now; in float when `off`; decided when `hard`."""
        if self.off:
            return weight
        up = (self.logits >= 0).float() if self.hard else rectified_sigmoid(self.logits)
        steps = (self.floor + up) if self._alive is None else (self.floor + up) * self._alive
        integers = (steps + self._zero).clamp(self.qtype.qmin, self.qtype.qmax)
        return (integers - self._zero) * self._scale

    def grid(self) -> QParams:
        """Return the grid, which stays."""
        return self._qparams

    def settled(self, weight: Tensor) -> Tensor:
        """Return the decided weight."""
        steps = self.floor + (self.logits.detach() >= 0)
        integers = (steps if self._alive is None else steps * self._alive) + self._zero
        return dequantize(integers.clamp(self.qtype.qmin, self.qtype.qmax).to(torch.int32), self._qparams)


class DroppedGrid(LearnedGrid):
    """An activation grid that lets a random share of values pass in float.

    Source: Wei et al., "QDrop", ICLR 2022, section 3.3.

    Attributes:
        learned: whether its scale may move.
        off: all values pass in float.
        drop: the share that passes.
    """

    def __init__(self, qparams: QParams, *, learned: bool = True) -> None:
        """Start from a grid per tensor."""
        super().__init__(qparams)
        self.learned, self.off, self.drop = learned, False, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Round; in float when `off`."""
        if self.off:
            return x
        rounded = super().forward(x)
        return torch.where(torch.rand_like(x) < self.drop, x, rounded) if self.drop else rounded


@contextmanager
def in_float(grids: Iterable[nn.Module]) -> Iterator[None]:
    """Switch quantizers off in the block."""
    switched = [grid for grid in grids if isinstance(grid, SoftWeight | DroppedGrid)]
    for grid in switched:
        grid.off = True
    try:
        yield
    finally:
        for grid in switched:
            grid.off = False


@contextmanager
def decided(grids: Iterable[nn.Module]) -> Iterator[None]:
    """Round weights that are still between their neighbours, in the block."""
    switched = [grid for grid in grids if isinstance(grid, SoftWeight) and not grid.hard]
    for grid in switched:
        grid.hard = True
    try:
        yield
    finally:
        for grid in switched:
            grid.hard = False
