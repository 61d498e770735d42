"""The integer grid: `real = scale * (integer - zero_point)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from microtome.core.affine import qparams_from_range
from microtome.core.formats.base import Encoding, Format, Parameters, check_bits
from microtome.core.range_search import channel_extremes, weight_qparams
from microtome.types import QParams, QType


@dataclass(frozen=True)
class Affine(Format):
    """Equal steps over a range: per tensor, per channel, or per group of values.

    Symmetric: S = max|r| / (2^(b-1) - 1), integer zero is real zero. Asymmetric: S = (max - min) / (2^b - 1) and
    z = round(-min / S), over a range that is first widened to hold zero.
    Source: Jacob et al., CVPR 2018, equations 1 and 13; Krishnamoorthi, arXiv:1806.08342, section 2.

    Attributes:
        bits: 1 to 16.
        symmetric: real zero in the middle, no zero point.
        signed: integers on both sides of zero; None means so for symmetric grids only.
        narrow: leave the most negative integer out (signed grids; 1 bit has no room for it).
        group: so many values in a row of a channel share a scale, the last group of a row may be shorter; None is all.
        rounding: to the nearest value of the grid, or down to the next.
        clip: (low, high), the range to cover instead of the extremes.
        search: look for the range with the least squared error, up to the extremes.
    """

    bits: int = 8
    symmetric: bool = True
    signed: bool | None = None
    narrow: bool = True
    group: int | None = None
    rounding: Literal["nearest", "floor"] = "nearest"
    clip: tuple[float, float] | None = None
    search: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no grid."""
        check_bits(self.bits, 16)
        if self.group is not None and self.group < 1:
            raise ValueError(f"a group has at least one value, not {self.group}")
        if self.rounding not in ("nearest", "floor"):
            raise ValueError(f"rounding is nearest or floor, not {self.rounding!r}")
        if self.clip is not None and self.clip[0] > self.clip[1]:
            raise ValueError(f"not a range: {self.clip}")

    @property
    def name(self) -> str:
        """Such as `int4`, `uint8` or `int4g32`."""
        return self.qtype.name + (f"g{self.group}" if self.group else "")

    @property
    def qtype(self) -> QType:
        """The grid, along the first axis."""
        signed = self.symmetric if self.signed is None else self.signed
        return QType(self.bits, signed, self.symmetric, narrow=self.narrow and signed, axis=0)

    def fit(self, values: Tensor) -> Parameters:
        """Return `scale`, and `zero_point` where the grid is asymmetric: (C,), with groups (C, G)."""
        qtype = self.qtype
        shape: tuple[int, ...] = (len(values),)
        if self.group is not None:
            count = -(-values.shape[1] // self.group)
            values = functional.pad(values, (0, count * self.group - values.shape[1])).reshape(-1, self.group)
            shape = (*shape, count)
        if self.clip is not None:
            low, high = (torch.full((len(values),), end, device=values.device) for end in self.clip)
            qparams = qparams_from_range(low, high, qtype)
        elif self.search:
            qparams = weight_qparams(values, qtype, search=True)
        else:
            qparams = qparams_from_range(*channel_extremes(values, 0), qtype)
        parameters = {"scale": qparams.scale.reshape(shape)}
        if not _is_centred(qtype):
            parameters["zero_point"] = stored(qparams.zero_point, qtype).reshape(shape)
        return parameters

    def codes(self, values: Tensor, parameters: Parameters) -> Tensor:
        """Return integers counted from the grid's first."""
        qtype = self.qtype
        scale, zero_point = self._expanded(parameters, values.shape)
        steps = values / scale
        if self.rounding == "nearest":
            steps = steps.round()
        else:  # of the values that decoding gives, the largest that is not above
            steps = steps.floor()
            steps += ((steps + 1) * scale <= values).float()
            steps -= (steps * scale > values).float()
        return (steps + zero_point).clamp(qtype.qmin, qtype.qmax).to(torch.int32) - _first(qtype)

    def decode(self, codes: Tensor, parameters: Parameters) -> Tensor:
        """Return scale * (integer - zero_point)."""
        scale, zero_point = self._expanded(parameters, codes.shape)
        return (self._integers(codes) - zero_point).float() * scale

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return the integers of a symmetric grid whose scales do not change within a channel."""
        scale = parameters["scale"]
        if not _is_centred(self.qtype) or scale.numel() not in (1, len(codes)):
            return None
        return self._integers(codes), scale

    def _integers(self, codes: Tensor) -> Tensor:
        """Return the integers of codes; a narrow grid's unused code reads as its first."""
        return (codes + _first(self.qtype)).clamp(min=self.qtype.qmin)

    def _expanded(self, parameters: Parameters, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return scale and zero point as (C or 1, N or 1)."""
        scale = parameters["scale"]
        zero_point = parameters.get("zero_point", torch.zeros((), dtype=torch.int32, device=scale.device))
        return self._spread(scale, shape), self._spread(zero_point.to(torch.int32), shape)

    def _spread(self, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.group is None or parameter.ndim == 0:
            return parameter.reshape(-1, 1)
        return parameter.reshape(shape[0], -1).repeat_interleave(self.group, 1)[:, : shape[1]]


def affine_encoding(qparams: QParams) -> Encoding:
    """Return a quantizer's grid as an Encoding: any width, per tensor or per channel."""
    qtype = qparams.qtype
    symmetric = qtype.signed and not bool(qparams.zero_point.any())
    parameters = {"scale": qparams.scale}
    if not symmetric:
        parameters["zero_point"] = stored(qparams.zero_point, qtype)
    return Encoding(Affine(qtype.bits, symmetric, qtype.signed, qtype.narrow), parameters, qtype.axis)


def stored(zero_point: Tensor, qtype: QType) -> Tensor:
    """Return zero points in the smallest integers that hold them."""
    if qtype.bits > 8:
        return zero_point.to(torch.int32)
    return zero_point.to(torch.int8 if qtype.signed else torch.uint8)


def _is_centred(qtype: QType) -> bool:
    """Whether the zero point is 0 for certain."""
    return qtype.signed and qtype.symmetric


def _first(qtype: QType) -> int:
    """Return the integer that code 0 stands for, narrow or not."""
    return -(1 << (qtype.bits - 1)) if qtype.signed else 0
