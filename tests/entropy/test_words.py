import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.entropy.words import Gaps, from_planes, gaps, planes, symbol_bytes, without_gaps, words


def test_words_by_hand():
    found = words(np.array([7.5, 0, 7.5, -1, 0], "<f4").tobytes(), 4)
    assert found is not None
    assert found.symbols.tolist() == [0, 1, 0, 2, 1]
    assert found.dictionary.view("<f4").tolist() == [7.5, 0, -1]


@given(st.binary(min_size=4, max_size=400), st.sampled_from([1, 2, 4]))
def test_words_come_back(content: bytes, width: int):
    content = content[: len(content) // width * width]
    found = words(content, width)
    assert found is not None  # it is short
    assert found.dictionary[found.symbols].tobytes() == content
    assert len(np.unique(found.dictionary)) == len(found.dictionary)


def test_the_same_weights_in_another_type_are_the_same_symbols():
    integers = np.random.default_rng(0).integers(-7, 8, 5000)
    one, other = (
        words(integers.astype(np.int8).tobytes(), 1),
        words((integers * np.float32(0.3)).astype("<f4").tobytes(), 4),
    )
    assert one is not None
    assert other is not None
    assert np.array_equal(one.symbols, other.symbols)


def test_no_dictionary_where_all_words_differ():
    assert words(np.arange(100_000, dtype="<u4").tobytes(), 4) is None
    assert words(np.tile(np.arange(70_000, dtype="<u4"), 4).tobytes(), 4) is None
    assert words(np.repeat(np.arange(66_000, dtype="<u4"), 100).tobytes(), 4) is None  # as a sample shows it, they fit
    with pytest.raises(ValueError, match="multiple"):
        words(b"12345", 2)


def test_gaps_by_hand():
    symbols = np.array([0] * 3 + [5] + [0] * 255 + [4, 6] + [0] * 600, np.uint16)
    found = gaps(symbols)
    assert found is not None
    assert (found.common, found.others.tolist()) == (0, [5, 4, 6])
    assert found.tokens.tolist() == [3, 255, 0, 0, 255, 255, 90]
    assert np.array_equal(without_gaps(found, len(symbols)), symbols)


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(1, 9)), max_size=20), st.integers(0, 600))
def test_gaps_come_back(runs: list[tuple[int, int]], end: int):
    symbols = np.array([s for run, other in runs for s in [0] * run + [other]] + [0] * (end + len(runs) + 1), np.uint16)
    found = gaps(symbols)
    assert found is not None
    assert np.array_equal(without_gaps(found, len(symbols)), symbols)
    for wrong in (len(symbols) - 1, len(symbols) + 1):
        with pytest.raises(ValueError, match="do not fit"):
            without_gaps(found, wrong)


def test_gaps_that_lack_a_symbol():
    with pytest.raises(ValueError, match="do not fit"):
        without_gaps(Gaps(0, np.array([1, 1], np.uint16), np.array([], np.uint16)), 3)
    with pytest.raises(ValueError, match="do not fit"):
        without_gaps(Gaps(0, np.array([2, 255], np.uint16), np.array([], np.uint16)), 2)  # it goes on behind the end


def test_no_gaps_where_nothing_is_common():
    assert gaps(np.array([0, 1, 0, 1], np.uint16)) is None


def test_planes_by_hand():
    found = planes(b"\x01\x02\x03\x04", 2)
    assert [plane.tolist() for plane in found] == [[1, 3], [2, 4]]
    assert from_planes(found) == b"\x01\x02\x03\x04"


def test_symbol_bytes_by_hand():
    assert symbol_bytes(np.array([0, 1] * 8, np.uint16)) == 2 + 2 * 1.5
    assert symbol_bytes(np.array([], np.uint16)) == 0
