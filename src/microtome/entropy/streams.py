"""Sequences of symbols in the form that is the smallest: coded as they are, or as gaps; each is kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from microtome.entropy.frequencies import shares
from microtome.entropy.words import Gaps, gaps, symbol_bytes, without_gaps
from microtome.types import Array


class Streams:
    """Takes sequences.

    Attributes:
        records: one for each, as plain values: see `container`.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.records: list[dict[str, Any]] = []
        self._sequences: list[tuple[Array, Array]] = []
        self._known: dict[bytes, int] = {}

    def cost(self, symbols: Array) -> float:
        """Estimate the bytes that a sequence would add."""
        if _digest(symbols) in self._known:
            return 0.0
        return _least(symbols)[0]

    def add(self, symbols: Array) -> int:
        """Take a sequence, uint16 and not empty, and return the place of its record."""
        digest = _digest(symbols)
        if digest not in self._known:
            _, found = _least(symbols)
            if found is None:
                record = self._plain(symbols)
            else:
                tokens = self.add(found.tokens)
                others = self.add(found.others)
                record = {"count": len(symbols), "common": found.common, "tokens": tokens, "others": others}
            self._known[digest] = len(self.records)
            self.records.append(record)
        return self._known[digest]

    def coded(self) -> list[tuple[Array, Array]]:
        """Return what the coder is given: symbols and frequencies, in order."""
        return self._sequences

    def _plain(self, symbols: Array) -> dict[str, Any]:
        counts = np.bincount(symbols)
        if np.count_nonzero(counts) == 1:
            return {"count": len(symbols), "f": [0] * (len(counts) - 1) + [1]}
        frequencies = shares(counts)
        self._sequences.append((symbols, frequencies))
        return {"count": len(symbols), "f": frequencies.tolist()}


def _least(symbols: Array) -> tuple[float, Gaps | None]:
    """Return the bytes of the smaller form, and the gaps if that is it."""
    plain, found = symbol_bytes(symbols), gaps(symbols)
    if found is None or not len(found.others):
        return plain, None
    other = symbol_bytes(found.tokens) + symbol_bytes(found.others)
    return (other, found) if other < plain else (plain, None)


def _digest(symbols: Array) -> bytes:
    return hashlib.blake2b(symbols.tobytes(), digest_size=16).digest()


def streams_from(
    records: Sequence[Mapping[str, Any]], decode: Callable[[list[tuple[int, Array]]], list[Array]], most: int
) -> list[Array]:
    """Return the sequences that records stand for.

    Args:
        records: of `Streams`.
        decode: returns the symbols of sequences, given their lengths and frequencies.
        most: symbols that are believed.

    Raises:
        ValueError: a record contradicts itself.
    """
    if not all(0 < record["count"] <= most for record in records):
        raise ValueError("a sequence has no length")
    tables = {place: np.array(r["f"], np.int64) for place, r in enumerate(records) if "f" in r}
    coded = {place: table for place, table in tables.items() if np.count_nonzero(table) > 1}
    decoded = decode([(records[place]["count"], table) for place, table in coded.items()])
    by_place = dict(zip(coded, decoded, strict=True))
    found: list[Array] = []
    for place, record in enumerate(records):
        if place in by_place:
            found.append(by_place[place])
        elif place in tables:
            found.append(np.full(record["count"], int(tables[place].argmax()), np.uint16))
        else:  # its parts come before it
            parts = Gaps(record["common"], found[record["tokens"]], found[record["others"]])
            found.append(without_gaps(parts, record["count"]))
    return found
