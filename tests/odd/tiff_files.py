"""Writes TIFF files of kinds that Pillow cannot write, and JPEG files of 12 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS = 256, 257, 258, 259, 262, 273, 277, 278
COUNTS, PLANAR, PALETTE, EXTRA, FORMAT = 279, 284, 320, 338, 339
FORMATS = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    path: Path,
    array: np.ndarray,
    *,
    photometric: int = 1,
    order: str = "<",
    planar: bool = False,
    packed: bool = False,
    extra: int | None = None,
    palette: Sequence[int] | None = None,
) -> Path:
    """(H, W) or (H, W, C) in one strip, or with `planar` one strip per channel."""
    rows, columns = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    data = array.astype(array.dtype.newbyteorder(order))
    strips = [data[..., k].tobytes() for k in range(channels)] if planar else [data.tobytes()]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    starts = [8 + sum(len(s) for s in strips[:k]) for k in range(len(strips))]
    tags: dict[int, tuple[str, Sequence[int]]] = {
        WIDTH: ("L", [columns]),
        HEIGHT: ("L", [rows]),
        BITS: ("H", [8 * array.dtype.itemsize] * channels),
        COMPRESSION: ("H", [8 if packed else 1]),
        PHOTOMETRIC: ("H", [photometric]),
        OFFSETS: ("L", starts),
        SAMPLES: ("H", [channels]),
        ROWS: ("L", [rows]),
        COUNTS: ("L", [len(s) for s in strips]),
        PLANAR: ("H", [1 + planar]),
        FORMAT: ("H", [FORMATS[array.dtype.kind]] * channels),
    }
    if extra is not None:
        tags[EXTRA] = ("H", [extra])
    if palette is not None:
        tags[PALETTE] = ("H", palette)
    body = b"".join(strips)
    after = 8 + len(body) + 2 + 12 * len(tags) + 4
    entries, far = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}{kind}", *values)
        entry = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}L", after + len(far))
        far += b"" if len(raw) <= 4 else raw
        entries += struct.pack(f"{order}HHL", tag, 3 if kind == "H" else 4, len(values)) + entry
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8 + len(body))
    path.write_bytes(head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + far)
    return path


def write_jpeg(path: Path, blocks: np.ndarray, bits: int = 12, process: int = 0xC1, colours: int = 1) -> Path:
    """A JPEG in which each block of 8×8 pixels has one value, given as (rows, columns): nothing is rounded."""
    rows, columns = blocks.shape

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    text, before = "", 0
    for value in ((blocks.astype(int) - (1 << (bits - 1))) * 8).ravel():
        step, before = int(value) - before, int(value)
        size = abs(step).bit_length()
        text += f"{size:05b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "") + "0"
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    parts = [
        segment(0xDB, bytes([0]) + bytes([1] * 64)),  # no quantization
        segment(process, struct.pack(">BHHB", bits, rows * 8, columns * 8, colours) + bytes([1, 0x11, 0])),
        segment(0xC4, bytes([0x00, 0, 0, 0, 0, 16, *[0] * 11, *range(16)])),  # DC: a code of 5 bits is its category
        segment(0xC4, bytes([0x10, 1, *[0] * 15, 0])),  # AC: the bit 0 ends a block
        segment(0xDA, bytes([1, 1, 0x00, 0, 63, 0])),
    ]
    path.write_bytes(b"\xff\xd8" + b"".join(parts) + coded + b"\xff\xd9")
    return path
