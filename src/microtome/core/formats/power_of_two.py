"""Powers of two: a multiplication becomes a shift."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from microtome.core.formats.base import LARGEST_INT8, check_bits
from microtome.core.formats.levels import ScaledLevels, mirrored


@dataclass(frozen=True)
class PowerOfTwo(ScaledLevels):
    """0 and ±scale * 2^k with 2^(b-1) - 1 exponents k; the scale per channel has the least squared error.

    Rounds to the nearest level. One code stays unused. Up to 4 bits the levels are integers up to 64.
    Source: Zhou et al., "Incremental Network Quantization", ICLR 2017, equations 1 to 4; the scale is free here.

    Attributes:
        bits: 2 to 7.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        """Refuse other widths."""
        check_bits(self.bits, 7, least=2)

    @property
    def name(self) -> str:
        """Such as `pot4`."""
        return f"pot{self.bits}"

    @property
    def levels(self) -> Tensor:
        """Return the levels, ascending."""
        count = (1 << (self.bits - 1)) - 1
        top = 2.0 ** (count - 1)
        unit = 1.0 if top <= LARGEST_INT8 else top
        return mirrored([2.0**k / unit for k in range(count)])
