import contextlib
import copy
import json
import lzma
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.entropy import container
from microtome.entropy.container import MAGIC, read, write
from microtome.entropy.frequencies import coded_bytes
from microtome.errors import MicrotomeError, ReadError

RNG = np.random.default_rng(0)
COUNT = 20_000
LEVELS = np.array([0, -3, 5, 1, 127, -128], np.int8)
PLACES = RNG.choice(len(LEVELS), COUNT, p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
INTEGERS = LEVELS[PLACES]
ENTROPY = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.02)) * COUNT / 8  # bytes


def with_arrays(*arrays: np.ndarray) -> dict[str, bytes]:
    """Return a file of arrays, and one that says where they lie, as OpenVINO has them."""
    xml, content = "<net>", b""
    for array in arrays:
        xml += f'<data element_type="x" shape="1" offset="{len(content)}" size="{array.nbytes}" />'
        content += array.tobytes() + b"\0" * 7
    return {"model.xml": xml.encode(), "model.bin": content}


def size(*arrays: np.ndarray) -> int:
    return len(write(with_arrays(*arrays)))


FILES = with_arrays(INTEGERS[:600], RNG.standard_normal(150).astype(np.float32), np.zeros(700, np.int16))


def small() -> bytes:
    content = write(FILES)
    forms = {part[0] for entry in header(content)["files"] for part in entry["parts"]}
    assert forms in ({"text", "words", "planes"}, {"text", "words", "rest"})
    return content


def header(content: bytes) -> dict:
    (length,) = struct.unpack_from("<I", content, len(MAGIC))
    return json.loads(lzma.decompress(content[len(MAGIC) + 4 :][:length]))


def with_header(content: bytes, changed: dict) -> bytes:
    """Return a container with another header, and the checksum that goes with it."""
    (length,) = struct.unpack_from("<I", content, len(MAGIC))
    head = lzma.compress(json.dumps(changed).encode())
    body = MAGIC + struct.pack("<I", len(head)) + head + content[len(MAGIC) + 4 + length : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.binary(max_size=3000), st.builds(lambda b, n: b * n, st.binary(max_size=9), st.integers(0, 500))),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_files_come_back(files: dict[str, bytes]):
    assert read(write(files)) == files


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["<i1", "<u2", "<f4", "<f8"]),
            st.integers(1, 9000),
            st.sampled_from([1, 2, 3, 16, 300, 9000]),
        ),
        max_size=3,
    )
)
@settings(max_examples=12, deadline=None)
def test_any_arrays_come_back(kinds: list[tuple[str, int, int]]):
    rng = np.random.default_rng(len(kinds))
    arrays = [rng.standard_normal(k).astype(kind)[rng.integers(0, k, n)] for kind, n, k in kinds]
    files = with_arrays(*arrays)
    assert read(write(files)) == files


def test_each_array_takes_what_its_entropy_says():
    nothing = size(np.zeros(COUNT, np.int8))
    assert size(INTEGERS) - nothing == pytest.approx(ENTROPY, rel=0.05)
    floats = INTEGERS.astype(np.float32) * np.float32(0.01)
    assert size(floats) - nothing == pytest.approx(ENTROPY, rel=0.05)
    assert size(INTEGERS.astype(np.int16)) - nothing == pytest.approx(ENTROPY, rel=0.05)


def test_floats_that_all_differ_lose_their_exponents_only():
    values = RNG.standard_normal(COUNT).astype(np.float32)
    assert 3 * COUNT < size(values) < 3.6 * COUNT


def test_zeros_in_rows_take_less_than_their_number_says():
    rows = np.repeat(RNG.permutation(np.r_[np.ones(100), np.zeros(1900)]), 100)
    clustered = (rows * RNG.integers(-7, 8, len(rows))).astype(np.int8)
    files = with_arrays(clustered)
    content = write(files)
    assert len(content) < 0.7 * coded_bytes(np.unique(clustered, return_counts=True)[1])
    assert read(content) == files


def test_the_same_weights_in_another_type_cost_a_dictionary():
    one = size(INTEGERS)
    files = with_arrays(INTEGERS, INTEGERS.astype(np.float32) * np.float32(0.3))
    assert len(write(files)) - one < 120
    assert read(write(files)) == files


def test_text_is_compressed_across_files():
    text = b"".join(b'<layer id="%d" name="conv%d" type="Convolution"/>' % (k, k * k) for k in range(2000))
    assert len(write({"a.xml": text, "b.xml": text})) < 0.1 * len(text)


def test_random_bytes_take_their_own_room():
    noise = RNG.bytes(100_000)
    assert len(write({"noise": noise})) < len(noise) + 400


def test_no_byte_may_differ():
    content = small()
    for place in range(len(content)):
        for flip in (0x01, 0x80, 0xFF):
            with pytest.raises(ReadError):
                read(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])


def test_no_length_but_its_own_is_read():
    content = small()
    for length in range(len(content)):
        with pytest.raises(ReadError):
            read(content[:length])
    with pytest.raises(ReadError):
        read(content + b"\0")
    assert read(content) == FILES


STRIDE = 7  # of places; a reading takes 10 ms


def test_a_mended_checksum_hides_nothing():
    content = small()
    refused = 0
    for place in range(len(MAGIC), len(content) - 4, STRIDE):
        body = content[:place] + bytes([content[place] ^ (1 + place % 255)]) + content[place + 1 : -4]
        try:
            read(body + struct.pack("<I", zlib.crc32(body)))
        except MicrotomeError:
            refused += 1
    assert refused == len(range(len(MAGIC), len(content) - 4, STRIDE))


ODD = (-1, 1, 1 << 62, 1 << 70, None, [], 1.5)


def changes(value, where=()):
    """Yield each place in nested plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*where, key)
        yield from changes(inner, (*where, key))


def test_a_header_that_lies_is_refused():
    content = small()
    original = header(content)
    for path in changes(original):
        for odd in ODD:
            changed = copy.deepcopy(original)
            *way, last = path
            inner = changed
            for key in way:
                inner = inner[key]
            if inner[last] == odd or (path[0] == "files" and last == "name"):
                continue
            inner[last] = odd
            with contextlib.suppress(ReadError):
                assert read(with_header(content, changed)) == FILES, (path, odd)  # said in another way


def test_a_later_part_is_not_read_twice():
    content = small()
    changed = header(content)
    changed["files"] = changed["files"][:1]
    with pytest.raises(ReadError, match="contradicts"):
        read(with_header(content, changed))


@pytest.mark.parametrize("content", [b"", b"PK\3\4", MAGIC, MAGIC + b"\0" * 30])
def test_other_files_are_refused_with_their_name(content: bytes):
    with pytest.raises(ReadError, match=r"model\.coded"):
        read(content, "model.coded")


def test_what_is_written_says_its_layout():
    content = write({"a": b"xyz" * 5})
    found = header(content)
    assert found.keys() == {"files", "streams", "lanes", "words", "text"}
    assert found["files"] == [{"name": "a", "bytes": 15, "crc32": zlib.crc32(b"xyz" * 5), "parts": [["text", 15]]}]
    assert container.read(with_header(content, found)) == {"a": b"xyz" * 5}
