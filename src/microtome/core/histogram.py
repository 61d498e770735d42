"""A histogram of a stream of tensors in constant memory, whatever range the values turn out to have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096  # over [-reach, reach): a tensor of one sign still has 1024 to 2048 bins of its own
SMALLEST = 2.0**-100  # no grid resolves smaller values (affine.SMALLEST_SCALE), and the bin width stays a normal float
CHUNK = 1 << 18  # values binned at once: the scratch tensors stay in the processor's cache


class Histogram:
    """Counts values in equal bins around zero; the bin width is a power of two that doubles as values grow.

    Doubling merges neighbouring bins exactly, so that the result does not depend on the order of the stream.

    Attributes:
        counts: float64, shape (BINS,).
        low: smallest value seen.
        high: largest value seen.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.low = math.inf
        self.high = -math.inf
        self._reach = 0.0

    def update(self, values: Tensor) -> None:
        """Add a tensor of any shape.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = _in_memory_order(values.detach())
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("the tensor holds NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        needed = 2.0 ** math.frexp(max(-low, high, SMALLEST))[1]  # the power of two above the largest value
        if self._reach == 0.0:
            self._reach = needed
        while self._reach < needed:
            self._double()
        for part in torch.split(flat.float().cpu(), CHUNK):
            # Division by a power of two is exact, so that a value's bin does not depend on rounding.
            bins = (part / self.width).floor_().add_(BINS // 2).int()
            self.counts += torch.bincount(bins, minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts, as if its values had been seen here; `other` is not changed."""
        if math.isinf(other.low):
            return
        counts, reach = other.counts, other._reach
        self._reach = self._reach or reach
        while self._reach < reach:
            self._double()
        while reach < self._reach:
            counts, reach = _halved(counts), reach * 2
        self.counts = self.counts + counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def _double(self) -> None:
        """Merge bins two by two into the middle half."""
        self.counts = _halved(self.counts)
        self._reach *= 2

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self._reach / BINS

    @property
    def centres(self) -> Tensor:
        """Middle of each bin; float64, shape (BINS,)."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.width - self._reach

    def quantile(self, share: float) -> float:
        """Return the value below which `share` (0 to 1) of all values lie, to within a bin, inside [low, high]."""
        cumulative = self.counts.cumsum(0)
        target = share * float(cumulative[-1])
        position = int(torch.searchsorted(cumulative, torch.tensor(target, dtype=torch.float64)))
        position = min(position, BINS - 1)
        before = float(cumulative[position - 1]) if position else 0.0
        inside = (target - before) / max(float(self.counts[position]), 1.0)
        value = (position + min(max(inside, 0.0), 1.0)) * self.width - self._reach
        return min(max(value, self.low), self.high)


def _in_memory_order(values: Tensor) -> Tensor:
    """Return all values in a row, without a copy where they lie together, such as channels last."""
    axes = sorted(range(values.ndim), key=values.stride, reverse=True)
    return values.permute(axes).reshape(-1)


def _halved(counts: Tensor) -> Tensor:
    """Return the counts in bins of twice the width."""
    result = torch.zeros_like(counts)
    result[BINS // 4 : BINS // 4 + BINS // 2] = counts.reshape(-1, 2).sum(1)
    return result
