import numpy as np
import pytest

from microtome.entropy.rans import decode, encode
from microtome.entropy.streams import Streams, streams_from

RNG = np.random.default_rng(0)
ROWS = np.repeat(RNG.permutation(np.r_[np.ones(100), np.zeros(1900)]), 100)
CLUSTERED = (ROWS * RNG.integers(0, 16, len(ROWS))).astype(np.uint16)
SPREAD = RNG.permutation(CLUSTERED)
MOST = 1 << 30


def back(streams: Streams) -> list[np.ndarray]:
    states, words = encode(streams.coded(), 5)
    return streams_from(streams.records, lambda coded: decode(states, words, coded), MOST)


@pytest.mark.parametrize(
    "symbols", [CLUSTERED, SPREAD, np.full(9, 3, np.uint16), RNG.integers(0, 9, 50).astype(np.uint16)]
)
def test_a_sequence_comes_back(symbols: np.ndarray):
    streams = Streams()
    place = streams.add(symbols)
    assert np.array_equal(back(streams)[place], symbols)


def test_the_form_is_the_smaller_one():
    streams = Streams()
    clustered, spread = streams.add(CLUSTERED), streams.add(SPREAD)
    assert "tokens" in streams.records[clustered]
    assert "f" in streams.records[spread]
    assert Streams().cost(CLUSTERED) < 0.6 * Streams().cost(SPREAD)


def test_the_same_sequence_is_kept_once():
    streams = Streams()
    first = streams.add(CLUSTERED)
    coded = len(streams.coded())
    assert streams.cost(CLUSTERED) == 0
    assert streams.add(CLUSTERED.copy()) == first
    assert len(streams.coded()) == coded


def test_one_symbol_is_not_coded():
    streams = Streams()
    streams.add(np.full(1000, 2, np.uint16))
    assert streams.records == [{"count": 1000, "f": [0, 0, 1]}]
    assert streams.coded() == []


@pytest.mark.parametrize("count", [0, -1, MOST + 1])
def test_a_length_that_nobody_believes(count: int):
    with pytest.raises(ValueError, match="length"):
        streams_from([{"count": count, "f": [1]}], lambda coded: [], MOST)


def test_parts_come_before_the_whole():
    with pytest.raises(IndexError):
        streams_from([{"count": 3, "common": 0, "tokens": 1, "others": 2}], lambda coded: [], MOST)
