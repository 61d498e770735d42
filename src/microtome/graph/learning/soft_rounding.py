"""Fake-quantizers for reconstruction: a weight between its two neighbours, an activation that is rounded in part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from microtome.core.rounding import gradient_of_indecision, gradient_of_logits, logits_of, rectified
from microtome.graph.learning.learned_grids import Grid, LearnedGrid
from microtome.types import QParams


class SoftWeight(Grid):
    """A weight between two neighbours on its grid; the share of each is learned.

    There are as many logits as weights, and in the late layers of a network they are most of what a step computes. So a
    step computes the weight once for all its samples, gradients gather in it, and `pull` takes them to the logits.

    Attributes:
        off: the weight stays in float.
    """

    def __init__(self, qparams: QParams, weight: Tensor, *, zeros: bool = False) -> None:
        """Start where the float weight is: between what rounding down and up would give, by its fraction.

        With `zeros`, a weight that is zero stays zero.
        """
        super().__init__()
        self.qtype, self._qparams, self._real = qparams.qtype, qparams, weight.detach()
        self._zeros = zeros
        floor, _, _ = self._neighbours()
        self.logits = nn.Parameter(logits_of((self._steps() - floor).clamp(1e-4, 1 - 1e-4)))
        self.off = self._hard = False
        self._decided: Tensor | None = None
        self._loose: Tensor | None = None
        self._between: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # low, span, sigmoid, share rounded up

    @property
    def capacity(self) -> int:
        """Bits that the weight takes."""
        return self.logits.numel() * self.qtype.bits

    @property
    def hard(self) -> bool:
        """Whether each weight takes the neighbour that it is nearer to."""
        return self._hard

    @hard.setter
    def hard(self, hard: bool) -> None:
        self._hard, self._decided = hard, None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is now: in float when `off`; decided when `hard`; else the same until `pull`."""
        if self.off:
            return weight
        if self.hard:
            if self._decided is None:
                self._decided = self.settled(weight)
            return self._decided
        if self._loose is None:
            self._loosen()
        assert self._loose is not None
        return self._loose

    @torch.no_grad()
    def pull(self, beta: float | None, decisiveness: float) -> None:
        """Set the logits' gradient: what gathered in the weight, and what drives it to one of its neighbours.

        Args:
            beta: of the regularizer; None leaves it out.
            decisiveness: weight of each logit's `indecision`.
        """
        assert self._between is not None
        assert self._loose is not None
        _, span, sigmoid, up = self._between
        pull = torch.zeros_like(up) if self._loose.grad is None else self._loose.grad.mul_(span)
        if beta is not None:
            pull.add_(gradient_of_indecision(up, beta), alpha=decisiveness)
        self.logits.grad = gradient_of_logits(pull, sigmoid, up)
        self._loose = None

    def rest(self) -> None:
        """Drop what is kept from one step to the next."""
        self._decided = self._loose = self._between = None

    def grid(self) -> QParams:
        """Return the grid, which stays."""
        return self._qparams

    @torch.no_grad()
    def settled(self, weight: Tensor) -> Tensor:
        """Return the decided weight."""
        _, low, high = self._neighbours()
        return torch.where(self.logits >= 0, high, low)

    @torch.no_grad()
    def _loosen(self) -> None:
        if self._between is None:
            _, low, high = self._neighbours()
            self._between = low, high - low, torch.empty_like(low), torch.empty_like(low)
        low, span, sigmoid, up = self._between
        torch.sigmoid(self.logits, out=sigmoid)
        rectified(sigmoid, out=up)
        self._loose = torch.addcmul(low, span, up).requires_grad_()

    def _steps(self) -> Tensor:
        return self._real / self._along(self._qparams.scale)

    def _neighbours(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the steps rounded down, and both neighbours; where the grid ends they are the same."""
        scale, zero = self._along(self._qparams.scale), self._along(self._qparams.zero_point)
        floor = self._steps().floor()
        low, high = (((floor + up + zero).clamp(self.qtype.qmin, self.qtype.qmax) - zero) * scale for up in (0, 1))
        return floor, low, torch.where(self._real == 0, low, high) if self._zeros else high

    def _along(self, parameter: Tensor) -> Tensor:
        return parameter.reshape([-1 if axis == self.qtype.axis else 1 for axis in range(self._real.ndim)])


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
