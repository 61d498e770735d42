"""Weights of two values."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.core.affine import SMALLEST_SCALE
from microtome.core.formats.base import Parameters, per_row
from microtome.core.formats.levels import LevelFormat


@dataclass(frozen=True)
class Binary(LevelFormat):
    """-scale or +scale per channel, with scale = mean|w|: the least squared error; zero counts as positive.

    Source: Rastegari et al., "XNOR-Net", ECCV 2016, equations 4 and 6.
    """

    bits: int = field(default=1, init=False)

    @property
    def name(self) -> str:
        """`binary`."""
        return "binary"

    def fit(self, values: Tensor) -> Parameters:
        """Return `scale` (C,)."""
        return {"scale": values.double().abs().mean(1).float().clamp(min=SMALLEST_SCALE)}

    def table(self, parameters: Parameters) -> Tensor:
        """Return the two values."""
        scale = per_row(parameters["scale"])
        return torch.cat([-scale, scale], 1)

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return -1 and 1."""
        return 2 * codes - 1, parameters["scale"]
