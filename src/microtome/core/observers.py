"""Observers: what range should a tensor's grid cover, given the values that calibration showed?

Each observer is fed batch by batch (`update`) and then asked (`range`); memory does not grow with the stream.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from microtome.core.affine import qparams_from_range, real_range
from microtome.core.histogram import BINS, Histogram
from microtome.types import ObserverName, QType

OBSERVERS: tuple[str, ...] = get_args(ObserverName)


class Observer(Protocol):
    """Watches one tensor; those of tensors that must share a grid are merged afterwards.

    Attributes:
        low: smallest value (moving average: of the batches' smallest values).
        high: largest value, likewise.
    """

    low: float
    high: float

    def update(self, values: Tensor) -> None:
        """Add one batch."""

    def merge(self, other: Any) -> None:
        """Add what another observer of the same kind has seen."""

    def range(self, qtype: QType) -> tuple[float, float]:
        """Return (low, high) of the real range that the grid of `qtype` should cover."""


def make_observer(name: str, *, percentile: float = 99.99, momentum: float = 0.1) -> Observer:
    """Return a fresh observer.

    Args:
        name: one of OBSERVERS.
        percentile: share of values, in percent, that `percentile` keeps inside the range.
        momentum: weight of the newest batch in `moving_average`.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "minmax":
        return MinMax()
    if name == "moving_average":
        return MovingAverage(momentum)
    if name == "percentile":
        return Percentile(percentile)
    if name == "mse":
        return LeastSquares()
    if name == "kl":
        return Entropy()
    raise ValueError(f"no observer named {name!r}; there are {', '.join(OBSERVERS)}")


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        """Start empty."""
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Tensor) -> None:
        """Add one batch."""
        low, high = (float(v) for v in torch.aminmax(values.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("the tensor holds NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: MinMax) -> None:
        """Widen the range to hold the other's."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self, qtype: QType) -> tuple[float, float]:
        """Return the range seen."""
        return self.low, self.high


class MovingAverage(MinMax):
    """Exponential moving average of each batch's extremes (Jacob et al. 2018, section 3.1)."""

    def __init__(self, momentum: float) -> None:
        """Start empty; `momentum` is the weight of the newest batch, above 0 and up to 1."""
        super().__init__()
        self.momentum = momentum

    def update(self, values: Tensor) -> None:
        """Add one batch."""
        batch = MinMax()
        batch.update(values)
        if math.isinf(self.low):
            self.low, self.high = batch.low, batch.high
        else:
            self.low += self.momentum * (batch.low - self.low)
            self.high += self.momentum * (batch.high - self.high)


class Percentile(Histogram):
    """Leaves out the same small share of values at either end."""

    def __init__(self, percentile: float) -> None:
        """Start empty; `percentile` is the share of values, in percent, that either end keeps inside."""
        super().__init__()
        self.share = percentile / 100

    def range(self, qtype: QType) -> tuple[float, float]:
        """Return the two quantiles; an end that is already at zero stays there."""
        return min(self.quantile(1 - self.share), self.high), max(self.quantile(self.share), self.low)


class LeastSquares(Histogram):
    """The range of least mean squared error on the histogram.

    Each end is shrunk in turn over `STEPS` even steps from its extreme towards zero (symmetric grids: both ends
    together). The full range is a candidate, so this never loses to min-max on the histogram's error.
    """

    STEPS = 100

    def range(self, qtype: QType) -> tuple[float, float]:
        """Return the best range."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        shrink = torch.linspace(1, 1 / self.STEPS, self.STEPS, dtype=torch.float64)
        if qtype.symmetric:
            reach = max(-low, high)
            best = self._best(-shrink * reach, shrink * reach, qtype)
            return -float(shrink[best]) * reach, float(shrink[best]) * reach
        for _ in range(2):
            highs = torch.unique(torch.cat([shrink * max(self.high, 0.0), torch.tensor([high], dtype=torch.float64)]))
            high = float(highs[self._best(torch.full_like(highs, low), highs, qtype)])
            lows = torch.unique(torch.cat([shrink * min(self.low, 0.0), torch.tensor([low], dtype=torch.float64)]))
            low = float(lows[self._best(lows, torch.full_like(lows, high), qtype)])
        return low, high

    def error(self, low: float, high: float, qtype: QType) -> float:
        """Mean squared error of the histogram's values on the grid over [low, high]."""
        lows, highs = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
        return float(self._errors(lows, highs, qtype)[0]) / float(self.counts.sum())

    def _best(self, lows: Tensor, highs: Tensor, qtype: QType) -> int:
        return int(self._errors(lows, highs, qtype).argmin())

    def _errors(self, lows: Tensor, highs: Tensor, qtype: QType) -> Tensor:
        """Summed squared error for each candidate range; shape (candidates,)."""
        filled = self.counts > 0
        counts, centres = self.counts[filled], self.centres[filled]
        params = qparams_from_range(lows, highs, qtype)
        scale, zero = params.scale.double()[:, None], params.zero_point.double()[:, None]
        grid = ((centres / scale).round() + zero).clamp(qtype.qmin, qtype.qmax)
        return ((((grid - zero) * scale) - centres).square() * counts).sum(1)


class Entropy(Histogram):
    """The range whose quantized histogram diverges least (Kullback-Leibler) from the full one.

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017. The clipped tails are added to the outermost bins of the
    reference; each grid cell's mass is spread evenly over its filled bins. The bin of zero is left out, as TensorRT
    does: zero is on every grid, and the many zeros behind a ReLU would count as error when their cell is spread.
    """

    STEPS = 64

    def range(self, qtype: QType) -> tuple[float, float]:
        """Return the best range."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        best, best_divergence = (low, high), math.inf
        for shrink in torch.linspace(1, 1 / self.STEPS, self.STEPS).tolist():
            candidate = (low * shrink, high * shrink)
            divergence = self._divergence(*candidate, qtype)
            if divergence < best_divergence:
                best, best_divergence = candidate, divergence
        return best

    def _divergence(self, low: float, high: float, qtype: QType) -> float:
        params = qparams_from_range(torch.tensor(low), torch.tensor(high), qtype)
        grid_low, grid_high = (float(v) for v in real_range(params))
        centres = self.centres
        inside = (centres >= grid_low - self.width) & (centres <= grid_high + self.width)
        everything = self.counts.clone()
        everything[BINS // 2] = 0
        counts = everything[inside]
        if len(counts) < 2 or float(counts.sum()) == 0:
            return math.inf
        reference = counts.clone()
        positions = inside.nonzero()
        reference[0] += everything[: int(positions[0])].sum()
        reference[-1] += everything[int(positions[-1]) + 1 :].sum()
        scale = float(params.scale)
        cell = (centres[inside] / scale).round().long()
        cell = cell - cell.min()
        size = int(cell.max()) + 1
        filled = (counts > 0).double()
        mass = torch.zeros(size, dtype=torch.float64).index_add_(0, cell, counts)
        bins = torch.zeros(size, dtype=torch.float64).index_add_(0, cell, filled)
        spread = (mass / bins.clamp(min=1))[cell] * filled
        p, q = reference / reference.sum(), spread / spread.sum()
        tiny = 1e-12
        keep = p > 0
        return float((p[keep] * ((p[keep] + tiny) / (q[keep] + tiny)).log()).sum())
