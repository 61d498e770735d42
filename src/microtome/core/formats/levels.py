"""Formats whose values are a table of levels: nearest level, scales by search."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from microtome.core.affine import SMALLEST_SCALE, usable_scale
from microtome.core.formats.base import LARGEST_INT8, Format, Parameters, per_row

# Scales that the search tries, as shares of the largest magnitude: few-bit formats clip far inside the extremes.
SHARES = tuple(step / 100 for step in range(10, 141, 2))
# Then around the best of these: the error of a format of many levels has many minima.
AROUND = tuple(1 + step / 400 for step in range(-4, 5) if step)
REFINEMENTS = 5


class LevelFormat(Format):
    """A format that knows its values as a table, in ascending order; a code is a place in it.

    Where a table has fewer than 2^bits values, the last codes stay unused and read as its last value.
    """

    @abstractmethod
    def table(self, parameters: Parameters) -> Tensor:
        """Return the values of all codes, ascending, float32: (C, levels), or (1, levels) for all channels."""

    def boundaries(self, table: Tensor) -> Tensor:
        """Return from which value on each level but the first is taken: (…, levels - 1), float64."""
        wide = table.double()
        return (wide[:, 1:] + wide[:, :-1]) / 2

    def codes(self, values: Tensor, parameters: Parameters) -> Tensor:
        """Return the place of each value's level."""
        boundaries = self.boundaries(self.table(parameters))
        return places(values, boundaries)

    def decode(self, codes: Tensor, parameters: Parameters) -> Tensor:
        """Look the levels up."""
        table = self.table(parameters)
        index = codes.long().clamp(max=table.shape[1] - 1)
        return table[0][index] if len(table) == 1 else table.gather(1, index)


class ScaledLevels(LevelFormat):
    """Levels that are the same for all channels, but for a scale: value = scale * level."""

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """Return the levels, ascending, symmetric about zero: integers where these are small, else at most 1."""

    def fit(self, values: Tensor) -> Parameters:
        """Search each channel's scale for the least squared error."""
        return {"scale": search_scale(values, self.levels.to(values.device))}

    def table(self, parameters: Parameters) -> Tensor:
        """Return scale * levels."""
        scale = per_row(parameters["scale"])
        return scale * self.levels.to(scale.device)

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return the levels themselves where they are integers of 8 bits."""
        levels = self.levels.to(codes.device)
        if not torch.equal(levels, levels.round()) or float(levels.abs().max()) > LARGEST_INT8:
            return None
        return levels[codes.long().clamp(max=len(levels) - 1)], parameters["scale"]


def places(values: Tensor, boundaries: Tensor) -> Tensor:
    """Return how many boundaries (C or 1, B) lie at or below each value (C, N)."""
    wide = values.double().contiguous()
    if len(boundaries) == 1:
        return torch.bucketize(wide, boundaries[0].contiguous(), right=True, out_int32=True)
    return torch.searchsorted(boundaries.contiguous(), wide, right=True, out_int32=True)


def search_scale(values: Tensor, levels: Tensor) -> Tensor:
    """Return for each row the scale with which `scale * levels` is nearest to it in squares: (C, N) → (C,).

    Shares of the row's largest magnitude are tried, then scales around the best, which is refined in turns: with the
    codes fixed, the best scale is sum(w * level) / sum(level²).
    """
    top = levels[-1]
    largest = values.abs().amax(1, keepdim=True)
    safe = usable_scale(largest / top)
    boundaries = ((levels[1:].double() + levels[:-1].double()) / 2).float()
    best, least = safe, torch.full_like(safe, torch.inf, dtype=torch.float64)

    def nearest(scale: Tensor) -> Tensor:
        return levels[torch.bucketize(values / scale, boundaries, right=True)]

    def better(scale: Tensor) -> tuple[Tensor, Tensor]:
        error = (nearest(scale) * scale - values).double().square().sum(1, keepdim=True)
        return torch.where(error < least, scale, best), torch.minimum(error, least)

    for share in SHARES:
        best, least = better(safe * share)
    coarse = best
    for factor in AROUND:
        best, least = better(coarse * factor)
    for _ in range(REFINEMENTS):
        level = nearest(best).double()
        power = level.square().sum(1, keepdim=True)
        scale = ((values * level).sum(1, keepdim=True) / torch.where(power > 0, power, 1)).float()
        usable = (power > 0) & (scale > SMALLEST_SCALE)
        best, least = better(torch.where(usable, scale, best))
    return best.squeeze(1)


def mirrored(magnitudes: list[float]) -> Tensor:
    """Return zero and the magnitudes with both signs, ascending, float32."""
    ordered = sorted({*magnitudes} - {0.0})
    return torch.tensor([-m for m in reversed(ordered)] + [0.0] + ordered)
