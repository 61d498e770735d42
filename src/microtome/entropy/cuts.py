"""Where arrays lie in model files, so that each is coded by itself.

What is found here decides how small a file becomes, never whether it comes back: a file that is not understood is one
piece.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping

Span = tuple[int, int]
"""From, up to: places of bytes."""

LEAST = 512  # bytes of an array that is worth a table of its own
LOCAL_HEADER = 30  # bytes of a ZIP entry's header before its name
# Fields of ONNX's protobuf (onnx.proto): messages on the way to a tensor's bytes, and those bytes.
GRAPH, NODE, INITIALIZER, ATTRIBUTE, ATTRIBUTE_TENSOR, RAW_DATA = 7, 1, 5, 5, 5, 9
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


def arrays_in(name: str, files: Mapping[str, bytes]) -> list[Span]:
    """Return where the arrays of a file lie, in order, without overlaps; those below 512 bytes are left out.

    Args:
        name: of the file.
        files: it, and those that it lies beside: an OpenVINO `.bin` is described by its `.xml`.
    """
    content = files[name]
    ending = name.rpartition(".")[2]
    if ending == "bin":
        described = files.get(name.removesuffix("bin") + "xml")
        spans = [] if described is None else _openvino(described)
    else:
        spans = _found(_BY_ENDING.get(ending, _nothing), content)
    found: list[Span] = []
    for start, stop in sorted(set(spans)):
        if stop - start >= LEAST and start >= (found[-1][1] if found else 0) and stop <= len(content):
            found.append((start, stop))
    return found


def _found(look: Callable[[bytes], Iterator[Span]], content: bytes) -> list[Span]:
    try:
        return list(look(content))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, zipfile.BadZipFile):
        return []  # it is not what its ending says


def _nothing(content: bytes) -> Iterator[Span]:
    return iter(())


def _openvino(xml: bytes) -> list[Span]:
    spans = []
    for tag in re.findall(rb"<data [^>]*offset=[^>]*>", xml):
        place, size = (re.search(rb"\b" + key + rb'="(\d+)"', tag) for key in (b"offset", b"size"))
        if place and size:
            spans.append((int(place[1]), int(place[1]) + int(size[1])))
    return spans


def _safetensors(content: bytes) -> Iterator[Span]:
    (length,) = struct.unpack_from("<Q", content)
    start = 8 + length
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            yield start + first, start + last


def _zip(content: bytes) -> Iterator[Span]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.compress_type == zipfile.ZIP_STORED and not entry.filename.endswith((".json", ".txt")):
                name, extra = struct.unpack_from("<HH", content, entry.header_offset + LOCAL_HEADER - 4)
                start = entry.header_offset + LOCAL_HEADER + name + extra
                yield start, start + entry.file_size


def _onnx(content: bytes) -> Iterator[Span]:
    yield from _tensors(content, 0, len(content), (GRAPH,))


# What is gone into behind each field; a tensor ends the way.
_WAYS: Mapping[tuple[int, ...], tuple[tuple[int, ...], ...]] = {
    (GRAPH,): ((GRAPH, INITIALIZER), (GRAPH, NODE)),
    (GRAPH, NODE): ((GRAPH, NODE, ATTRIBUTE),),
    (GRAPH, NODE, ATTRIBUTE): ((GRAPH, NODE, ATTRIBUTE, ATTRIBUTE_TENSOR),),
}


def _tensors(content: bytes, start: int, stop: int, *ways: tuple[int, ...]) -> Iterator[Span]:
    """Walk the fields of a message, and into those that lead to tensors."""
    while start < stop:
        key, start = _varint(content, start)
        field, kind = key >> 3, key & 7
        if kind == VARINT:
            _, start = _varint(content, start)
        elif kind in (FIXED32, FIXED64):
            start += 4 if kind == FIXED32 else 8
        elif kind == DELIMITED:
            size, start = _varint(content, start)
            for way in ways:
                if way[-1] == field:
                    if way[-1] == RAW_DATA:
                        yield start, start + size
                    else:
                        yield from _tensors(content, start, start + size, *_WAYS.get(way, ((*way, RAW_DATA),)))
            start += size
        else:
            raise ValueError("no protobuf")


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


_BY_ENDING: Mapping[str, Callable[[bytes], Iterator[Span]]] = {
    "safetensors": _safetensors,
    "pt2": _zip,
    "onnx": _onnx,
}
