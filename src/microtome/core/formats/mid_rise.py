"""Equal steps without a zero: as many values below it as above."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.core.affine import SMALLEST_SCALE
from microtome.core.formats.base import Parameters, check_bits
from microtome.core.formats.levels import ScaledLevels, search_scale


@dataclass(frozen=True)
class MidRise(ScaledLevels):
    """The odd integers from -(2^b - 1) to 2^b - 1, times a scale per channel of the least squared error.

    With two bits: -3, -1, 1, 3 times the scale, or -1.5, -0.5, 0.5, 1.5 steps, a step being two scales. All four codes
    are used, and none is spent on one side only, as on the integer grid from -2 to 1. Real zero has no code: it counts
    as positive, and becomes one scale.
    Source: the mid-rise quantizer of Gersho and Gray, "Vector Quantization and Signal Compression", 1992, section 5.2;
    of weights Liu et al., "ParetoQ", arXiv:2502.02631, equation 5 (stretched elastic quantization).

    Attributes:
        bits: 2 to 7; all levels are integers of 8 bits.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        """Refuse other widths."""
        check_bits(self.bits, 7, least=2)

    @property
    def name(self) -> str:
        """Such as `midrise2`."""
        return f"midrise{self.bits}"

    @property
    def levels(self) -> Tensor:
        """Return the odd integers, ascending."""
        top = (1 << self.bits) - 1
        return torch.arange(-top, top + 1, 2, dtype=torch.float32)

    def fit(self, values: Tensor) -> Parameters:
        """Search each channel's scale; where there is nothing but zeros, it is the smallest that kernels take."""
        scale = search_scale(values, self.levels.to(values.device))
        return {"scale": torch.where(values.abs().amax(1) > 0, scale, SMALLEST_SCALE)}
