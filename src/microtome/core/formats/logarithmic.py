"""Equal ratios instead of equal steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microtome.core.affine import usable_scale
from microtome.core.formats.base import LARGEST_INT8, Parameters, check_bits, per_row
from microtome.core.formats.levels import LevelFormat, mirrored

# How far below the largest level the smallest may lie; float32 ends not much further down.
DEEPEST = 2.0**64


@dataclass(frozen=True)
class Logarithmic(LevelFormat):
    """Magnitudes with equal ratios, rounded in the logarithm.

    Without `span`, for weights: 0 and ±scale * base^-k, k = 0 … 2^(b-1) - 2, with scale = max|r| per channel. What is
    nearer (in the logarithm) to the next level below the smallest is 0; one code stays unused.
    Source: Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation", arXiv:1603.01025,
    section 3.

    With `span` = (min, max), for positive values: code = round((log r - log min) / (log max - log min) * (2^b - 1)), or
    the same with floor; there is no zero and no sign, and no parameter.

    Attributes:
        bits: 2 to 8 for weights, 1 to 12 with `span`.
        base: ratio of neighbouring levels, above 1; not used with `span`.
        span: positive range.
        rounding: to the nearest level in the logarithm, or (with `span`) down to the next.
    """

    bits: int = 4
    base: float = 2.0
    span: tuple[float, float] | None = None
    rounding: Literal["nearest", "floor"] = "nearest"

    def __post_init__(self) -> None:
        """Refuse settings that make no levels."""
        if self.rounding not in ("nearest", "floor"):
            raise ValueError(f"rounding is nearest or floor, not {self.rounding!r}")
        if self.span is not None:
            check_bits(self.bits, 12)
            if not 0 < self.span[0] < self.span[1] < math.inf:
                raise ValueError(f"not a positive range: {self.span}")
            return
        check_bits(self.bits, 8, least=2)
        if self.rounding == "floor":
            raise ValueError("only positive ranges are rounded down")
        if not self.base > 1 or (self._exponents - 1) * math.log(self.base) > math.log(DEEPEST):
            raise ValueError(f"base {self.base} is not above 1, or too large for {self.bits} bits")

    @property
    def name(self) -> str:
        """Such as `log4`."""
        return f"log{self.bits}"

    def fit(self, values: Tensor) -> Parameters:
        """Return each channel's largest magnitude as `scale` (C,); nothing with `span`."""
        if self.span is not None:
            return {}
        largest = values.abs().amax(1)
        return {"scale": usable_scale(largest)}

    def table(self, parameters: Parameters) -> Tensor:
        """Return the levels, ascending."""
        if self.span is not None:
            low, high = (math.log(end) for end in self.span)
            share = torch.arange(1 << self.bits, dtype=torch.float64) / ((1 << self.bits) - 1)
            return (low + share * (high - low)).exp().float()[None]
        scale = per_row(parameters["scale"])
        return scale * mirrored([self.base**-k for k in range(self._exponents)]).to(scale.device)

    def boundaries(self, table: Tensor) -> Tensor:
        """Return geometric means of neighbours; beside zero, half a ratio below the smallest level."""
        wide = table.double()
        if self.rounding == "floor":
            return wide[:, 1:]
        if self.span is not None:
            return (wide[:, 1:] * wide[:, :-1]).sqrt()
        positive = wide[:, self._exponents + 1 :]
        lower = torch.cat([positive[:, :1] / self.base, positive[:, :-1]], 1)
        between = (positive * lower).sqrt()
        return torch.cat([-between.flip(1), between], 1)

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return powers of two as integers, if that is what they are."""
        if self.span is not None or self.base != 2:
            return None
        top = 2.0 ** (self._exponents - 1)
        if top > LARGEST_INT8:
            return None
        levels = mirrored([top / 2**k for k in range(self._exponents)]).to(codes.device)
        return levels[codes.long().clamp(max=len(levels) - 1)], parameters["scale"] / top

    @property
    def _exponents(self) -> int:
        return (1 << (self.bits - 1)) - 1
