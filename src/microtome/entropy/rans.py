"""rANS on many lanes at once: sequences of symbols ↔ one stream of 16-bit words.

Each lane is a coder of its own, with a state of 32 bits; all lanes share one stream. Symbol i is coded in lane
i mod lanes, so that one step on arrays codes as many symbols as there are lanes. Sequences follow one another without
a gap, each with its own table.

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540, section 2 (range variant); interleaving after Giesen,
"Interleaved entropy coders", arXiv:1402.3392.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from microtome.types import Array

LOW = 1 << 16  # states lie in [LOW, 2^32), and move by words of 16 bits
WORD = 16
SYMBOLS_PER_LANE = 8192  # a lane costs three bytes
MOST_LANES = 4096  # states and temporaries of so many lanes stay in the processor's nearest caches


def lanes_for(symbols: int) -> int:
    """Return how many lanes to code so many symbols with."""
    return min(max(symbols // SYMBOLS_PER_LANE, 1), MOST_LANES)


def encode(sequences: Sequence[tuple[Array, Array]], lanes: int) -> tuple[Array, Array]:
    """Code sequences of symbols, each with its table.

    Args:
        sequences: of each the symbols, integers (N,), and the frequencies (K,), of which at least two are not 0, as
            `frequencies.shares` makes them.
        lanes: how many symbols are coded at a time.

    Returns:
        The lanes' states, uint32 (lanes,), and the words, uint16.
    """
    states = np.full(lanes, LOW, np.uint32)
    backwards: list[Array] = []  # what is coded last is decoded first
    for (symbols, frequencies), steps in reversed(list(zip(sequences, _steps(sequences, lanes), strict=True))):
        bits = _bits(frequencies)
        share = frequencies.astype(np.uint32)
        before = (np.cumsum(frequencies) - frequencies).astype(np.uint32)
        for start, stop, lane in reversed(steps):
            state = states[lane : lane + stop - start]
            coded = symbols[start:stop]
            own = share[coded]
            full = np.flatnonzero(state >= own << (32 - bits))
            if len(full):
                backwards.append((state[full] & (LOW - 1)).astype(np.uint16))
                state[full] >>= WORD
            quotient = state // own
            state += (quotient << bits) - quotient * own + before[coded]
    return states, np.concatenate(backwards[::-1]) if backwards else np.empty(0, np.uint16)


def decode(states: Array, words: Array, sequences: Sequence[tuple[int, Array]]) -> list[Array]:
    """Return the symbols of each sequence, uint16.

    Args:
        states: of the lanes, from `encode`.
        words: likewise.
        sequences: of each how many symbols it has, and its frequencies.

    Raises:
        ValueError: this is not what `encode` made of sequences with these lengths and tables.
    """
    states, place, found = states.astype(np.uint32), 0, []
    for (count, frequencies), steps in zip(sequences, _steps(sequences, len(states)), strict=True):
        bits = _bits(frequencies)
        share = np.repeat(frequencies, frequencies).astype(np.uint32)  # of the symbol whose stretch a slot lies in
        first = np.cumsum(frequencies) - frequencies
        within = (np.arange(1 << bits) - np.repeat(first, frequencies)).astype(np.uint32)
        slots = np.empty(count, np.uint16)
        mask = np.uint32((1 << bits) - 1)
        for start, stop, lane in steps:
            state = states[lane : lane + stop - start]
            slot = state & mask
            slots[start:stop] = slot
            state >>= bits
            state *= share.take(slot)
            state += within.take(slot)
            empty = np.flatnonzero(state < LOW)
            if len(empty):
                state[empty] = (state[empty] << WORD) | words[place : place + len(empty)]
                place += len(empty)
        symbols = np.repeat(np.arange(len(frequencies), dtype=np.uint16), frequencies)
        found.append(symbols.take(slots))
    if place != len(words) or not bool((states == LOW).all()):
        raise ValueError("the coder does not end where it began")
    return found


Step = tuple[int, int, int]
"""Symbols from, up to; the first one's lane."""


def _steps(sequences: Sequence[tuple[Array | int, Array]], lanes: int) -> Iterator[list[Step]]:
    """Yield for each sequence the steps in which its symbols are coded: each lane at most once in each."""
    lane = 0
    for symbols, _ in sequences:
        count = symbols if isinstance(symbols, int) else len(symbols)
        steps = []
        start = 0
        while start < count:
            stop = min(count, start + lanes - lane)
            steps.append((start, stop, lane))
            lane = (lane + stop - start) % lanes
            start = stop
        yield steps


def _bits(frequencies: Array) -> int:
    """Return the bits of a table's total.

    Raises:
        ValueError: it is no table.
    """
    total = int(frequencies.sum())
    bits = total.bit_length() - 1
    if frequencies.ndim != 1 or int(frequencies.min()) < 0 or total != 1 << bits or bits > WORD:
        raise ValueError(f"frequencies sum to {total}, which is no power of two up to {1 << WORD}")
    if int(frequencies.max()) == total:
        raise ValueError("a sequence of one symbol needs no coder")
    return bits
