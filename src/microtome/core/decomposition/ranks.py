"""How many terms a truncation keeps."""

from __future__ import annotations

import math

from torch import Tensor


def rank_of_energy(energies: Tensor, share: float) -> int:
    """Return the fewest leading values whose sum is at least a share of all; at least 1.

    Args:
        energies: squared singular values, the largest first.
        share: 0 to 1.
    """
    total = energies.sum()
    if float(total) == 0:
        return 1
    lost = total - energies.cumsum(0)
    # what is lost, not what is kept, is compared: near 1 the kept share says nothing more
    enough = lost <= (1 - share) * total + total * 1e-12
    return int(enough.to(dtype=energies.dtype).argmax()) + 1


def rounded_rank(rank: int, step: int, most: int) -> int:
    """Return a rank rounded up to a multiple of a step, as kernels of runtimes like them; at most `most`."""
    return min(most, math.ceil(max(rank, 1) / step) * step)
