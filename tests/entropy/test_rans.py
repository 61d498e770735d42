import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.entropy import rans
from microtome.entropy.frequencies import MOST_SYMBOLS, coded_bytes, shares

# What lanes leave in their states, and what tables round: measured 0.7 % with 8,192 symbols a lane at 0.9 bits.
OVERHEAD = 0.01


def mixed(probabilities: list[float], count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(probabilities), count, p=probabilities).astype(np.uint16)


def coded(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return symbols, shares(np.bincount(symbols))


def test_a_state_by_hand():
    # two symbols in halves: x → 2 * x + symbol, in steps of 2^14: from 2^16 a one gives
    # (2^16 // 2^13) * 2^14 + 2^16 mod 2^13 + 2^13 = 2^17 + 2^13, and a zero from there (16 + 1) * 2^14
    states, words = rans.encode([(np.array([0, 1]), np.array([1 << 13, 1 << 13]))], 1)
    assert states.tolist() == [17 << 14]
    assert words.tolist() == []
    (found,) = rans.decode(states, words, [(2, np.array([1 << 13, 1 << 13]))])
    assert found.tolist() == [0, 1]


@given(sequences=st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=300), max_size=5), lanes=st.integers(1, 70))
@settings(max_examples=150, deadline=None)
def test_every_sequence_comes_back(sequences: list[list[int]], lanes: int):
    given_ = [coded(np.array(one, np.uint16)) for one in sequences if len(set(one)) > 1]
    states, words = rans.encode(given_, lanes)
    found = rans.decode(states, words, [(len(symbols), table) for symbols, table in given_])
    for (symbols, _), other in zip(given_, found, strict=True):
        assert np.array_equal(symbols, other)


@pytest.mark.parametrize("probabilities", [[0.95, *[0.05 / 15] * 15], [1 / 256] * 256, [0.5, 0.25, 0.25]])
def test_it_takes_what_entropy_says(probabilities: list[float]):
    count = 1_000_000
    states, words = rans.encode([coded(mixed(probabilities, count))], rans.lanes_for(count))
    entropy = count * sum(-p * math.log2(p) for p in probabilities) / 8
    assert 4 * len(states) + 2 * len(words) == pytest.approx(entropy, rel=OVERHEAD)


def test_an_alphabet_of_all_16_bits():
    symbols = np.random.default_rng(0).permutation(MOST_SYMBOLS).astype(np.uint16)
    table = shares(np.bincount(symbols))
    assert table.tolist() == [1] * MOST_SYMBOLS
    states, words = rans.encode([(symbols, table)], 8)
    assert np.array_equal(rans.decode(states, words, [(len(symbols), table)])[0], symbols)


@pytest.mark.parametrize("change", ["state", "word", "fewer", "more", "shorter", "table"])
def test_something_else_does_not_end_where_it_began(change: str):
    symbols, table = coded(mixed([0.7, 0.2, 0.1], 5000))
    states, words = rans.encode([(symbols, table)], 3)
    count = len(symbols)
    if change == "state":
        states[1] ^= 1
    elif change == "word":
        words[len(words) // 2] ^= 1
    elif change == "fewer":
        words = words[:-1]
    elif change == "more":
        words = np.append(words, words[:1])
    elif change == "shorter":
        count -= 1
    else:
        table = shares(np.array([3, 1, 1]))
    with pytest.raises(ValueError, match=r"end where|broadcast"):
        rans.decode(states, words, [(count, table)])


@pytest.mark.parametrize(
    ("table", "why"),
    [([3, 4], "no power"), ([1 << 14, 0], "one symbol"), ([-1, 17], "no power"), ([1 << 16] * 2, "no")],
)
def test_no_table(table: list[int], why: str):
    with pytest.raises(ValueError, match=why):
        rans.decode(np.array([1 << 16], np.uint32), np.empty(0, np.uint16), [(1, np.array(table))])


@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 10**9)), min_size=1, max_size=3000).filter(any))
@settings(max_examples=200, deadline=None)
def test_shares_keep_every_symbol(counts: list[int]):
    found = shares(np.array(counts))
    assert int(found.sum()) in (1 << 14, 1 << 16)
    assert np.array_equal(found > 0, np.array(counts) > 0)


def test_shares_by_hand():
    assert shares(np.array([3, 1, 0])).tolist() == [3 << 12, 1 << 12, 0]
    assert coded_bytes(np.array([4, 4, 8])) == pytest.approx((4 * 2 + 4 * 2 + 8) / 8)


@pytest.mark.parametrize("counts", [[0, 0], [], [1] * (MOST_SYMBOLS + 1)])
def test_no_shares(counts: list[int]):
    with pytest.raises(ValueError, match="symbols"):
        shares(np.array(counts, np.int64))
