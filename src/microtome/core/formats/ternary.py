"""Weights of three values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from microtome.core.affine import usable_scale
from microtome.core.formats.base import Encoded, Parameters, from_rows, per_row, rows
from microtome.core.formats.levels import LevelFormat

TWN_SHARE = 0.7  # of the mean magnitude: Li and Liu's optimum for normal and uniform weights is between 0.75 and 0.67


@dataclass(frozen=True)
class Ternary(LevelFormat):
    """-scale, 0 or +scale per channel.

    `twn`: what is above 0.7 * mean|w| in magnitude is not 0, and the scale is the mean of these magnitudes.
    Source: Li and Liu, "Ternary Weight Networks", arXiv:1605.04711, equations 3 to 6. `exact`: of all thresholds the
    one with the least squared error: the k largest magnitudes are kept for which (sum of them)² / k is largest.

    Attributes:
        threshold: `exact` or `twn`.
        two_scales: one for each sign, as in Zhu et al., "Trained Ternary Quantization", ICLR 2017; fitted, not trained.
    """

    bits: int = field(default=2, init=False)
    threshold: Literal["exact", "twn"] = "exact"
    two_scales: bool = False

    def __post_init__(self) -> None:
        """Refuse other thresholds."""
        if self.threshold not in ("exact", "twn"):
            raise ValueError(f"threshold is exact or twn, not {self.threshold!r}")

    @property
    def name(self) -> str:
        """`ternary`, or `ternary2` with two scales."""
        return "ternary2" if self.two_scales else "ternary"

    def encode(self, tensor: Tensor, axis: int | None = None, parameters: Parameters | None = None) -> Encoded:
        """Turn a tensor into codes. With parameters given, the nearest value is taken, whatever the threshold."""
        encoded = super().encode(tensor, axis, parameters)
        if parameters is not None or self.threshold == "exact":
            return encoded
        values = rows(tensor.detach().float(), axis)
        kept = values.abs() > _twn_threshold(values)
        codes = torch.where(kept, torch.where(values > 0, 2, 0), 1).to(torch.int32)
        return Encoded(self, from_rows(codes, encoded.codes.shape, axis), encoded.parameters, axis)

    def fit(self, values: Tensor) -> Parameters:
        """Return `scale` (C,), or `negative` and `positive`."""
        parts = {"negative": (-values).clamp(min=0), "positive": values.clamp(min=0)}
        if not self.two_scales:
            parts = {"scale": values.abs()}
        if self.threshold == "exact":
            return {name: exact_scale(part) for name, part in parts.items()}
        limit = _twn_threshold(values)
        return {name: _mean_above(part, limit) for name, part in parts.items()}

    def table(self, parameters: Parameters) -> Tensor:
        """Return the three values."""
        negative = per_row(parameters["negative" if self.two_scales else "scale"])
        positive = per_row(parameters["positive" if self.two_scales else "scale"])
        return torch.cat([-negative, torch.zeros_like(negative), positive], 1)

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return -1, 0 and 1, unless the signs have different scales."""
        return None if self.two_scales else (codes.clamp(max=2) - 1, parameters["scale"])


def exact_scale(magnitudes: Tensor) -> Tensor:
    """Return the scale for which {0, scale} is nearest to magnitudes (C, N) in squares: (C,); 1 where all are zero.

    With the k largest kept the best scale is their mean, and the squared error sum(w²) - (sum of the k)² / k.
    """
    ordered = magnitudes.double().sort(1, descending=True).values
    sums = ordered.cumsum(1)
    counts = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    best = (sums.square() / counts).argmax(1, keepdim=True)
    return usable_scale((sums.gather(1, best) / (best + 1)).squeeze(1).float())


def _twn_threshold(values: Tensor) -> Tensor:
    return TWN_SHARE * values.double().abs().mean(1, keepdim=True)  # a sum of float32 may be beyond it


def _mean_above(magnitudes: Tensor, limit: Tensor) -> Tensor:
    kept = magnitudes > limit
    return usable_scale(((magnitudes * kept).double().sum(1) / kept.sum(1).clamp(min=1)).float())
