"""Channels that others tell: which to merge into which, and how readers make up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_POSITIONS = 1 << 16  # of a batch that are looked at: means over so many are sharp
LEAST_EIGENVALUE = 1e-8  # of the largest: what is below is rounding


class ChannelMoments:
    """Mean and covariance of channels, streamed."""

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self._shift = self._first = self._second = torch.zeros(())

    def update(self, rows: Tensor) -> None:
        """Add values (C, n); of more than `MOST_POSITIONS`, every second, every third, …."""
        rows = rows[:, :: -(-rows.shape[1] // MOST_POSITIONS)].detach()
        if not self.count:  # sums around a first guess of the mean do not cancel
            self._shift = rows.mean(1, keepdim=True)
            self._first = rows.new_zeros((len(rows), 1), dtype=torch.float64)
            self._second = rows.new_zeros((len(rows), len(rows)), dtype=torch.float64)
        rows = rows - self._shift
        self._first += rows.sum(1, keepdim=True, dtype=torch.float64)
        self._second += rows @ rows.T
        self.count += rows.shape[1]

    @property
    def mean(self) -> Tensor:
        """Return the mean, (C,), float64."""
        return (self._shift.double() + self._first / self.count)[:, 0]

    @property
    def covariance(self) -> Tensor:
        """Return the covariance, (C, C), float64."""
        drift = self._first / self.count
        return self._second / self.count - drift @ drift.T


@dataclass(frozen=True)
class Merge:
    """One unit that goes, the one that stands for it, and what that costs."""

    gone: int
    kept: int
    cost: float


def costs(covariance: Tensor, energy: Tensor) -> Tensor:
    """Return what it costs a reader's output to tell one unit by another: (U, U), of row j by column k.

    It is the variance of unit j that no line a · k + b explains, times the squares of the weights that read it. A unit
    that is constant costs nothing.

    Args:
        covariance: of the units, (U, U).
        energy: sum of the squared weights that read each, (U,).
    """
    variance = covariance.diagonal().clamp(min=0.0)
    flat = variance <= LEAST_EIGENVALUE * variance.max()
    told = torch.where(flat, 0.0, covariance.square() / torch.where(flat, 1.0, variance))
    return (variance[:, None] - told).clamp(min=0.0) * energy[:, None]


def merges(cost: Tensor, least: int = 1) -> list[Merge]:
    """Return which units to merge, cheapest first, until `least` are left.

    Agglomerative: a unit that stands for others may go too; then the other one stands for all of them, and what that
    costs more than before is its price. Prices are made to rise along the list, so that any beginning of it can be
    taken.

    Args:
        cost: (U, U), of telling row j by column k.
        least: how many must be left.
    """
    whole = cost.double().clone()  # of telling all that a row stands for by a column
    paid = torch.zeros(len(cost), dtype=torch.float64)
    gone = torch.zeros(len(cost), dtype=torch.bool)
    found: list[Merge] = []
    price = 0.0
    while len(found) < len(cost) - least:
        prices = (whole - paid[:, None]).fill_diagonal_(torch.inf)
        prices[gone], prices[:, gone] = torch.inf, torch.inf
        one, other = divmod(int(prices.argmin()), len(cost))
        price = max(price, float(prices[one, other]))
        found.append(Merge(one, other, price))
        paid[other] += whole[one, other]
        whole[other] += whole[one]
        gone[one] = True
    return found


def standing(order: Sequence[Merge]) -> dict[int, int]:
    """Return for each unit that goes the one that stands for it in the end."""
    last = {merge.gone: merge.kept for merge in order}
    return {unit: _end(last, unit) for unit in last}


def _end(last: Mapping[int, int], unit: int) -> int:
    while unit in last:
        unit = last[unit]
    return unit


def explained(moments: ChannelMoments, gone: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least-squares A (G, K) and b (G,) with x_gone ≈ A x_by + b.

    Args:
        moments: of all channels.
        gone: numbers of channels, (G,).
        by: of others, (K,).
    """
    covariance, mean = moments.covariance, moments.mean
    inverse = torch.linalg.pinv(covariance[by][:, by], rtol=LEAST_EIGENVALUE, hermitian=True)
    matrix = covariance[gone][:, by] @ inverse
    return matrix, mean[gone] - matrix @ mean[by]


def explained_by_one(moments: ChannelMoments, gone: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Return a (G,) and b (G,) with x_gone ≈ a x_by + b, each channel by one other; both (G,) numbers of channels."""
    covariance, mean = moments.covariance, moments.mean
    variance = covariance[by, by]
    flat = variance <= LEAST_EIGENVALUE * covariance.diagonal().max()
    slope = torch.where(flat, 0.0, covariance[gone, by] / torch.where(flat, 1.0, variance))
    return slope, mean[gone] - slope * mean[by]
