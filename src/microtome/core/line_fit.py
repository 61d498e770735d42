"""Least-squares lines, one per channel, from streamed values."""

from __future__ import annotations

import torch
from torch import Tensor


class LineFit:
    """Sums from which the best lines y ≈ slope · x + offset follow, channel by channel.

    Sums are taken in float64 around the first batch's means, so that they do not cancel. Tensors are of shape (C,).
    """

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self._centre: tuple[Tensor, Tensor] = (torch.zeros(()), torch.zeros(()))
        self._sums: Tensor = torch.zeros(())

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add values of both, (C, n)."""
        if not self.count:
            self._centre = (x.mean(1, keepdim=True), y.mean(1, keepdim=True))
            self._sums = torch.zeros((5, len(x)), dtype=torch.float64, device=x.device)
        x, y = x - self._centre[0], y - self._centre[1]
        self._sums += torch.stack([v.sum(1, dtype=torch.float64) for v in (x, y, x * x, y * y, x * y)])
        self.count += x.shape[1]

    @property
    def mean(self) -> Tensor:
        """Mean of x."""
        return self._centre[0][:, 0].double() + self._sums[0] / self.count

    @property
    def variance(self) -> Tensor:
        """Variance of x."""
        return self._second(0, 0, 2)

    @property
    def spread(self) -> Tensor:
        """Variance of y."""
        return self._second(1, 1, 3)

    def line(self) -> tuple[Tensor, Tensor]:
        """Return slope and offset of the line with the least squared error; where x does not vary, slope 0."""
        variance = self.variance
        flat = variance <= 0
        slope = torch.where(flat, 0.0, self._second(0, 1, 4) / torch.where(flat, 1.0, variance))
        return slope, self._mean_y - slope * self.mean

    def error(self, slope: Tensor, offset: Tensor) -> Tensor:
        """Return the mean squared error of lines."""
        missed = self._mean_y - slope * self.mean - offset
        around = self.spread - 2 * slope * self._second(0, 1, 4) + slope**2 * self.variance
        return around.clamp(min=0.0) + missed**2

    @property
    def _mean_y(self) -> Tensor:
        return self._centre[1][:, 0].double() + self._sums[1] / self.count

    def _second(self, one: int, other: int, product: int) -> Tensor:
        """Return a variance or the covariance."""
        moment = self._sums[product] / self.count - self._sums[one] * self._sums[other] / self.count**2
        return moment if one != other else moment.clamp(min=0.0)
