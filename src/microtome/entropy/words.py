"""Arrays as symbols: words by a dictionary, gaps between the symbols that are not the commonest, planes of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microtome.entropy.frequencies import MOST_SYMBOLS, coded_bytes
from microtome.types import Array

SAMPLE = 1 << 16
LONGEST = 255  # the token of a gap that goes on
MOSTLY = 0.5  # gaps are tried where one symbol has more than this share
TABLE_BYTES = 1.5  # that a symbol takes in a compressed table, about


@dataclass(frozen=True, eq=False)
class Words:
    """An array by its distinct words.

    Attributes:
        symbols: uint16 (N,), the place of each word in the dictionary.
        dictionary: the distinct words, unsigned, in the order in which they first come: two arrays that differ in
            what their words are, but not in where they are equal, have the same symbols.
    """

    symbols: Array
    dictionary: Array


def words(content: bytes, width: int) -> Words | None:
    """Split bytes into words of 1, 2 or 4 bytes, little-endian; None if over 65,536 differ, or most
    of a sample of as many.

    Raises:
        ValueError: the bytes are no whole number of words.
    """
    array = np.frombuffer(content, f"<u{width}")
    if width > 1 and len(array) > SAMPLE and 2 * len(np.unique(array[:: len(array) // SAMPLE][:SAMPLE])) > SAMPLE:
        return None
    values, inverse = _places(array)
    if len(values) > MOST_SYMBOLS:
        return None
    first = np.empty(len(values), np.int64)
    first[inverse[::-1]] = np.arange(len(array))[::-1]  # of equal places the last one stays: the first to come
    order = np.argsort(first)
    rank = np.empty(len(values), np.uint16)
    rank[order] = np.arange(len(values), dtype=np.uint16)
    return Words(rank[inverse], values[order])


def _places(array: Array) -> tuple[Array, Array]:
    """Return the distinct values, and the place of each value among them."""
    if array.itemsize > 2:
        values, inverse = np.unique(array, return_inverse=True)
        return values, inverse.reshape(-1)
    there = np.bincount(array, minlength=1 << (8 * array.itemsize)) > 0
    rank = np.cumsum(there) - 1
    return np.flatnonzero(there).astype(array.dtype), rank[array]


@dataclass(frozen=True, eq=False)
class Gaps:
    """Symbols of which one is by far the commonest, by where the others stand.

    Attributes:
        common: that symbol.
        tokens: uint16: how many of it come before each other symbol, and before the end; 255 is 255 of it and no other
            symbol yet.
        others: the other symbols, in order.
    """

    common: int
    tokens: Array
    others: Array


def gaps(symbols: Array) -> Gaps | None:
    """Return symbols as gaps and others; None where no symbol has more than half of them."""
    counts = np.bincount(symbols)
    common = int(counts.argmax())
    if counts[common] <= MOSTLY * len(symbols):
        return None
    places = np.flatnonzero(symbols != common)
    runs = np.diff(places, prepend=-1, append=len(symbols)) - 1
    full = runs // LONGEST
    tokens = np.full(len(runs) + int(full.sum()), LONGEST, np.uint16)
    tokens[np.cumsum(full + 1) - 1] = runs % LONGEST
    return Gaps(common, tokens, symbols[places])


def without_gaps(found: Gaps, count: int) -> Array:
    """Return the symbols that gaps stand for, uint16 (count,).

    Raises:
        ValueError: they are not those of so many symbols.
    """
    ends = np.cumsum(np.where(found.tokens == LONGEST, LONGEST, found.tokens.astype(np.int64) + 1))
    places = ends[found.tokens != LONGEST] - 1
    if len(places) != len(found.others) + 1 or places[-1] != count or ends[-1] != count + 1:
        raise ValueError("gaps do not fit the number of symbols")
    symbols = np.full(count, found.common, np.uint16)
    symbols[places[:-1]] = found.others
    return symbols


def symbol_bytes(symbols: Array) -> float:
    """Estimate the bytes of coded symbols and of their table."""
    if not len(symbols):
        return 0.0
    counts = np.bincount(symbols)
    return coded_bytes(counts) + TABLE_BYTES * len(counts)


def planes(content: bytes, width: int) -> list[Array]:
    """Return the first, second, … bytes of all words, each uint16 (N,)."""
    table = np.frombuffer(content, np.uint8).reshape(-1, width)
    return [table[:, place].astype(np.uint16) for place in range(width)]


def from_planes(found: list[Array]) -> bytes:
    """Return the words that planes stand for."""
    return np.stack(found, 1).astype(np.uint8).tobytes()
