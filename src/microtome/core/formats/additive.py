"""Sums of powers of two: a few shifts and additions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from microtome.core.formats.base import LARGEST_INT8, check_bits
from microtome.core.formats.levels import ScaledLevels, mirrored

TERM_BITS = 2  # of each term; k in the paper


@dataclass(frozen=True)
class AdditivePowerOfTwo(ScaledLevels):
    """±scale * (p_0 + … + p_(n-1)), each term 0 or one of three powers of two; the scale has the least squared error.

    One bit is the sign, 2n bits choose the terms: p_i is in {0, 2^-i, 2^-(i+n), 2^-(i+2n)}. Where a bit is left over it
    adds a term in {0, 2^-2n}, and the last choice of the others moves to 2^-(i+2n+1). So no exponent comes twice, and
    no two codes are the same sum. Rounds to the nearest level; one code stays unused. Up to 6 bits the levels are
    integers of 8 bits.
    Source: Li et al., "Additive Powers-of-Two Quantization", ICLR 2020, section 2.2, equation 5, with k = 2.

    Attributes:
        bits: 2 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        """Refuse other widths."""
        check_bits(self.bits, 8, least=2)

    @property
    def name(self) -> str:
        """Such as `apot4`."""
        return f"apot{self.bits}"

    @property
    def levels(self) -> Tensor:
        """Return the levels, ascending."""
        count, extra = divmod(self.bits - 1, TERM_BITS)
        terms: list[tuple[int, ...]] = [(i, i + count, i + 2 * count + extra) for i in range(count)]
        if extra:
            terms.append((2 * count,))
        deepest = max(max(exponents) for exponents in terms)
        choices = [(0, *(1 << (deepest - exponent) for exponent in exponents)) for exponents in terms]
        sums = [sum(chosen) for chosen in itertools.product(*choices)]
        unit = 1 if max(sums) <= LARGEST_INT8 else max(sums)
        return mirrored([total / unit for total in sums])
