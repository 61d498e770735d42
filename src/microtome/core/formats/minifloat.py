"""Floating-point numbers of 8 and 16 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microtome.core.affine import usable_scale
from microtome.core.formats.base import Format, Parameters, per_row

Kind = Literal["fp16", "bf16", "e4m3fn", "e5m2"]
DTYPES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


# How many times the noise of a range that fits is taken for one that does not: 6 dB.
MISFIT = 4.0


@dataclass(frozen=True)
class Minifloat(Format):
    """Sign, exponent and mantissa in 8 or 16 bits; rounds to nearest even and saturates: no infinity comes up.

    Without a scale the range is fixed: `misfit` says where a tensor does not lie in it.

    Codes are the bit patterns. Source: IEEE 754-2019 (fp16); Micikevicius et al., "FP8 Formats for Deep Learning",
    arXiv:2209.05433, table 1 (e4m3fn, e5m2).

    Attributes:
        kind: `fp16`, `bf16`, `e4m3fn` or `e5m2`.
        scaled: for the 8-bit kinds, a scale per channel that puts its largest magnitude at the format's largest.
    """

    kind: Kind = "e4m3fn"
    scaled: bool = False

    def __post_init__(self) -> None:
        """Refuse other kinds."""
        if self.kind not in DTYPES:
            raise ValueError(f"no such format: {self.kind!r}; there are {', '.join(DTYPES)}")
        if self.scaled and self.bits == 16:
            raise ValueError(f"{self.kind} needs no scale")

    @property
    def bits(self) -> int:
        """8 or 16."""
        return DTYPES[self.kind].itemsize * 8

    @property
    def name(self) -> str:
        """Such as `fp8_e4m3fn`."""
        return self.kind if self.bits == 16 else f"fp8_{self.kind}"

    @property
    def largest(self) -> float:
        """The largest finite value: 65504, about 3.4e38, 448 or 57344."""
        return torch.finfo(DTYPES[self.kind]).max

    def fit(self, values: Tensor) -> Parameters:
        """Return `scale` (C,) if there is one."""
        if not self.scaled:
            return {}
        scale = values.abs().amax(1) / self.largest
        return {"scale": usable_scale(scale)}

    def misfit(self, tensor: Tensor, decoded: Tensor) -> str | None:
        """Say what lies beyond the largest or below the smallest value, where that costs digits; else None."""
        if self.scaled:
            return super().misfit(tensor, decoded)
        real = tensor.detach().double()
        largest, smallest = self.largest, torch.finfo(DTYPES[self.kind]).tiny
        beyond = float((real.abs() > largest).double().mean())
        if beyond:
            return f"{beyond:.1%} of it lie beyond {largest:.6g}, up to {float(real.abs().max()):.3g}"
        top = float(real.abs().max())
        if not top or _noise(real, decoded) <= MISFIT * _noise(real, self._at_best(real, top)):
            return None
        below = float(((real != 0) & (real.abs() < smallest)).double().mean())
        return f"{below:.1%} of it lie below {smallest:.3g}, where digits are lost, down to 0"

    def _at_best(self, real: Tensor, top: float) -> Tensor:
        """Return what would be left if the largest value lay in the upper part of the range."""
        factor = 2.0 ** math.floor(math.log2(self.largest / top))
        return (real * factor).float().to(DTYPES[self.kind]).double() / factor

    def codes(self, values: Tensor, parameters: Parameters) -> Tensor:
        """Return the bit patterns."""
        if self.scaled:
            values = values / per_row(parameters["scale"])
        small = values.clamp(-self.largest, self.largest).to(DTYPES[self.kind])
        return small.view(torch.uint8 if self.bits == 8 else torch.int16).to(torch.int32) & ((1 << self.bits) - 1)

    def decode(self, codes: Tensor, parameters: Parameters) -> Tensor:
        """Read the bit patterns."""
        narrow = codes.to(torch.uint8) if self.bits == 8 else codes.to(torch.int16)
        values = narrow.view(DTYPES[self.kind]).float()
        return values * per_row(parameters["scale"]) if self.scaled else values


def _noise(real: Tensor, decoded: Tensor) -> float:
    return float((real - decoded.double()).square().sum())
