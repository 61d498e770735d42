"""Linear layers fitted to what they shall give."""

from __future__ import annotations

import torch
from torch import Tensor

STILL = 1e-6  # of an input's square: what varies by less than a thousandth is not learned from
TINY = 1e-30


class Regression:
    """Streamed least squares of outputs on inputs, with an intercept.

    Attributes:
        count: samples seen.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self._shift: tuple[Tensor, Tensor] = (torch.zeros(()), torch.zeros(()))
        self._sums: tuple[Tensor, Tensor] = self._shift
        self._inner: Tensor = torch.zeros(())
        self._cross: Tensor = torch.zeros(())

    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add samples: inputs (N, I), outputs (N, O)."""
        if not self.count:  # sums around a first guess of the mean do not cancel
            self._shift = inputs.double().mean(0), outputs.double().mean(0)
            self._sums = torch.zeros_like(self._shift[0]), torch.zeros_like(self._shift[1])
            self._inner = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64)
            self._cross = torch.zeros(outputs.shape[1], inputs.shape[1], dtype=torch.float64)
        x, y = inputs.double() - self._shift[0], outputs.double() - self._shift[1]
        self._sums = self._sums[0] + x.sum(0), self._sums[1] + y.sum(0)
        self._inner += x.T @ x
        self._cross += y.T @ x
        self.count += len(x)

    def solve(self, weight: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """Return the weight (O, I) and intercept (O,) of least squared error.

        The squared distance to the weight given is added, times `damping` and the mean variance of the inputs: few
        samples say little, and what they do not say stays.

        Args:
            weight: (O, I), to start from.
            damping: at least 0.
        """
        drift_in, drift_out = (one / self.count for one in self._sums)
        inner = self._inner / self.count - torch.outer(drift_in, drift_in)
        cross = self._cross / self.count - torch.outer(drift_out, drift_in)
        start = weight.double()
        mean = self._shift[0] + drift_in
        ridge = damping * float(inner.diagonal().mean()) + STILL * float(mean.square().mean()) + TINY
        damped = inner + ridge * torch.eye(len(inner), dtype=torch.float64)
        found = start + torch.linalg.solve(damped, (cross - start @ inner).T).T
        intercept = (self._shift[1] + drift_out) - found @ mean
        return found, intercept
