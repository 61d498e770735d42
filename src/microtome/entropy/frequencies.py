"""Static tables for the coder: how often each symbol comes, in shares of a power of two."""

from __future__ import annotations

import numpy as np

from microtome.types import Array

# Precision of a table, as bits. More would leave the 32-bit states too little room, and is needed only by alphabets
# so large that each symbol could not have a share of its own.
FEW_BITS, MANY_BITS = 14, 16
FEW = 2048  # symbols at most for the coarser table
MOST_SYMBOLS = 1 << MANY_BITS


def precision(symbols: int) -> int:
    """Return the bits of a table's total for an alphabet of so many symbols."""
    return FEW_BITS if symbols <= FEW else MANY_BITS


def shares(counts: Array) -> Array:
    """Round counts to frequencies that sum to a power of two: int64 (K,), at least 1 for each symbol that comes.

    The total is 2^14, or 2^16 for more than 2,048 symbols. Rounding costs the less the larger a count is, so what is
    left over or missing goes to the largest.

    Args:
        counts: (K,), how often each symbol comes; 0 where it does not.

    Raises:
        ValueError: no symbol comes, or more than 65,536 do.
    """
    counts = np.asarray(counts, np.int64)
    present = int(np.count_nonzero(counts))
    if not 0 < present <= MOST_SYMBOLS:
        raise ValueError(f"a table is for 1 to {MOST_SYMBOLS} symbols, not {present}")
    total = 1 << precision(present)
    found = np.where(counts > 0, np.maximum(np.rint(counts * (total / counts.sum())), 1), 0).astype(np.int64)
    excess = int(found.sum()) - total
    order = np.argsort(-found, kind="stable")
    if excess < 0:
        found[order[0]] -= excess
    while excess > 0:
        for symbol in order:
            taken = min(excess, int(found[symbol]) - 1, max(1, int(found[symbol]) >> 6))
            if taken <= 0:
                break  # the others have 1 as well
            found[symbol] -= taken
            excess -= taken
            if not excess:
                break
    return found


def coded_bytes(counts: Array) -> float:
    """Return how many bytes symbols with these counts take with the table that `shares` makes of them.

    The table's own bytes, and the few by which the coder's states round, are left out.
    """
    frequencies = shares(counts)
    there = frequencies > 0
    bits = np.log2(frequencies.sum()) - np.log2(frequencies[there])
    return float(np.dot(np.asarray(counts)[there], bits)) / 8
