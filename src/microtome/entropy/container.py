"""Several files in one, arrays entropy-coded: what comes out is what went in, bit for bit, or an error.

Layout, little-endian: `MAGIC`; length of the header, uint32; the header; the coder's states, uint32; its words, uint16;
the text; the rest as it is; CRC-32 of all before it. The header is JSON in XZ:

- `files`: of each its `name`, `bytes`, `crc32` and `parts`, which follow one another:
  `["rest", bytes]`, `["text", bytes]`, `["words", width, stream]` (the dictionary lies in the rest), or
  `["planes", width, [stream, …]]`, one for each byte of a word.
- `streams`: symbols, each either `{"count", "f"}`, coded with the frequencies f (a single one: all symbols are that),
  or `{"count", "common", "tokens", "others"}`, gaps and other symbols, which are streams too.
- `lanes`, `words`: of the coder. `text`: bytes coded, and decoded; coded by XZ where that is shorter.

Files share streams: a network's weights in two files cost the second one a dictionary.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from microtome.entropy.cuts import arrays_in
from microtome.entropy.rans import decode, encode, lanes_for
from microtome.entropy.streams import Streams, streams_from
from microtome.entropy.words import from_planes, planes, words
from microtome.errors import ReadError
from microtome.types import Array

MAGIC = b"mtcoded1"
WIDTHS = (1, 2, 4)
WORTH_XZ = 0.9  # of an array's bytes, on a sample: XZ is tried on all of it below that
XZ_SAMPLE = 1 << 16
SMALLEST_WINDOW, LARGEST_WINDOW = 1 << 12, 1 << 26  # of XZ, in bytes
LARGEST, LARGEST_HEADER = 1 << 32, 1 << 28  # bytes that are believed


def write(files: Mapping[str, bytes]) -> bytes:
    """Return the container of some files, by name."""
    writer = _Writer()
    listed = [writer.file(name, content, files) for name, content in files.items()]
    text = _xz(bytes(writer.text))
    stored = text if len(text) < len(writer.text) else bytes(writer.text)
    sequences = writer.streams.coded()
    lanes = lanes_for(sum(len(symbols) for symbols, _ in sequences))
    states, stream = encode(sequences, lanes)
    header = {
        "files": listed,
        "streams": writer.streams.records,
        "lanes": lanes,
        "words": len(stream),
        "text": [len(stored), len(writer.text)],
    }
    head = _xz(json.dumps(header, separators=(",", ":")).encode())
    body = [MAGIC, struct.pack("<I", len(head)), head, states.astype("<u4").tobytes(), stream.astype("<u2").tobytes()]
    content = b"".join([*body, stored, bytes(writer.rest)])
    return content + struct.pack("<I", zlib.crc32(content))


def read(content: bytes, name: str = "The file") -> dict[str, bytes]:
    """Return the files of a container.

    Args:
        content: the container.
        name: what it is called in errors.

    Raises:
        ReadError: it is truncated, damaged, or no container.
    """
    if not content.startswith(MAGIC):
        raise ReadError(f"{name} is no coded file of microtome.", "Copy it again from its source.")
    if struct.pack("<I", zlib.crc32(content[:-4])) != content[-4:]:
        raise ReadError(
            f"{name} is truncated or damaged: its checksum does not hold.", "Copy it again from its source."
        )
    try:
        return _files(content[:-4])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise _broken(name) from error
    except (struct.error, lzma.LZMAError, MemoryError, RecursionError) as error:
        raise _broken(name) from error


def _broken(name: str) -> ReadError:
    return ReadError(f"{name} contradicts itself: it was not written whole.", "Copy it again from its source.")


class _Writer:
    """Takes files, and chooses for each of their arrays the form that is the smallest."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.text, self.rest = bytearray(), bytearray()

    def file(self, name: str, content: bytes, files: Mapping[str, bytes]) -> dict[str, Any]:
        """Take a file, and return its entry."""
        parts: list[list[Any]] = []
        place = 0
        for start, stop in [*arrays_in(name, files), (len(content), len(content))]:
            if start > place:
                parts.append(self._as_text(content[place:start]))
            if stop > start:
                parts.append(self._array(content[start:stop]))
            place = stop
        return {"name": name, "bytes": len(content), "crc32": zlib.crc32(content), "parts": parts}

    def _array(self, content: bytes) -> list[Any]:
        """Take an array in the form that costs the fewest bytes."""
        if content == content[:1] * len(content):
            self.rest += content[:1]
            return ["words", 1, self.streams.add(np.zeros(len(content), np.uint16))]
        costs: dict[tuple[str, int], float] = {("rest", 1): len(content)}
        found: dict[tuple[str, int], list[Array]] = {}
        for width in (width for width in WIDTHS if len(content) % width == 0):
            split = words(content, width)
            if split is not None:
                found["words", width] = [split.symbols, split.dictionary]
                costs["words", width] = self.streams.cost(split.symbols) + split.dictionary.nbytes
            if width > 1:
                found["planes", width] = planes(content, width)
                costs["planes", width] = sum(self.streams.cost(plane) for plane in found["planes", width])
        least = min(costs.values())
        sample = content[:XZ_SAMPLE]
        if len(_xz(sample)) / len(sample) < min(WORTH_XZ, least / len(content)) and len(_xz(content)) < least:
            return self._as_text(content)
        form, width = min(costs, key=lambda key: costs[key])
        if form == "rest":
            self.rest += content
            return [form, len(content)]
        if form == "planes":
            return [form, width, [self.streams.add(plane) for plane in found[form, width]]]
        symbols, dictionary = found[form, width]
        self.rest += dictionary.tobytes()
        return [form, width, self.streams.add(symbols)]

    def _as_text(self, content: bytes) -> list[Any]:
        self.text += content
        return ["text", len(content)]


def _files(content: bytes) -> dict[str, bytes]:
    (length,) = struct.unpack_from("<I", content, len(MAGIC))
    place = len(MAGIC) + 4
    header = json.loads(_from_xz(_exactly(content, place, length), LARGEST_HEADER))
    place += length
    states = np.frombuffer(_exactly(content, place, 4 * header["lanes"]), "<u4")
    place += states.nbytes
    stream = np.frombuffer(_exactly(content, place, 2 * header["words"]), "<u2")
    place += stream.nbytes
    stored, size = header["text"]
    text = _exactly(content, place, stored)
    text = _from_xz(text, size) if stored < size else text
    rest = content[place + stored :]
    if len(text) != size:
        raise ValueError("the text has another length")
    symbols = streams_from(header["streams"], lambda coded: decode(states, stream, coded), LARGEST)
    reader = _Reader(symbols, text, rest)
    files = {entry["name"]: reader.file(entry) for entry in header["files"]}
    if reader.left:
        raise ValueError("something is left over")
    return files


class _Reader:
    """Puts files together, one after the other."""

    def __init__(self, streams: list[Array], text: bytes, rest: bytes) -> None:
        self._streams, self._text, self._rest = streams, text, rest
        self._from_text = self._from_rest = 0

    @property
    def left(self) -> int:
        """Bytes of text and rest that no file has taken."""
        return len(self._text) + len(self._rest) - self._from_text - self._from_rest

    def file(self, entry: Mapping[str, Any]) -> bytes:
        """Return a file's content.

        Raises:
            ValueError: it is not what was written.
        """
        content = b"".join(self._part(*part) for part in entry["parts"])
        if len(content) != entry["bytes"] or zlib.crc32(content) != entry["crc32"]:
            raise ValueError(f"{entry['name']} is not what was written")
        return content

    def _part(self, form: str, size: int, stream: Any = None) -> bytes:
        if form == "text":
            self._from_text += size
            return _exactly(self._text, self._from_text - size, size)
        if form == "rest":
            return self._take(size)
        if form == "words":
            symbols = self._streams[_place(stream)]
            dictionary = np.frombuffer(self._take(size * (int(symbols.max()) + 1)), f"<u{size}")
            content: bytes = dictionary[symbols].tobytes()
            return content
        if form == "planes" and len(stream) == size:
            return from_planes([self._streams[_place(plane)] for plane in stream])
        raise ValueError(f"no form of an array is called {form!r}")

    def _take(self, size: int) -> bytes:
        self._from_rest += size
        return _exactly(self._rest, self._from_rest - size, size)


def _place(stream: int) -> int:
    if stream < 0:
        raise IndexError(stream)
    return stream


def _exactly(content: bytes, start: int, size: int) -> bytes:
    """Return so many bytes from a place on.

    Raises:
        ValueError: there are fewer.
    """
    if not 0 <= size <= len(content) - start:
        raise ValueError("the file ends too early")
    return content[start : start + size]


def _xz(content: bytes) -> bytes:
    window = 1 << max(len(content) - 1, SMALLEST_WINDOW - 1).bit_length()  # a larger one costs memory and time
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(window, LARGEST_WINDOW)}]
    return lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=chain)


def _from_xz(content: bytes, most: int) -> bytes:
    """Return what XZ bytes decode to: `most` bytes at most.

    Raises:
        ValueError: they are not whole.
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    found = decoder.decompress(content, max_length=most)
    if not decoder.eof or decoder.unused_data:
        raise ValueError("the compressed part is not whole")
    return found
