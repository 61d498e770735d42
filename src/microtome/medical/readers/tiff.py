"""What Pillow makes of numbers in TIFF files that it has no mode for, set right."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import PIL.Image

from microtome.medical.readers.wide import retiled
from microtome.types import Array

BITS, PHOTOMETRIC, FORMAT, COLOURS = 258, 262, 339, 320  # tags
WHITE_IS_ZERO = 0
UNSIGNED, SIGNED = 1, 2
SWAPPED = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


def tags_of(picture: PIL.Image.Image) -> dict[int, Any]:
    """The tags of an opened TIFF file; none of any other."""
    return dict(getattr(picture, "tag_v2", None) or {})


def use_native_order(picture: PIL.Image.Image) -> None:
    """Before decoding: libtiff unpacks into the machine's order, and Pillow would swap some of that once more."""
    tiles = getattr(picture, "tile", ())
    if sys.byteorder == "little" and any(tile[0] == "libtiff" and tile[3][0] in SWAPPED for tile in tiles):
        picture.tile = [retiled(tile, SWAPPED.get(tile[3][0], tile[3][0])) for tile in tiles]  # type: ignore[attr-defined]


def stored(array: Array, tags: dict[int, Any]) -> Array:
    """Gray values with their type in the file: signed ones of 8 and 16 bits, unsigned ones of 32.

    Pillow opens 16 bits with 32 in some versions: without tags that is what 32 are.
    """
    bits, kind = _first(tags, BITS, 1), _first(tags, FORMAT, UNSIGNED)
    if kind == SIGNED and bits in (8, 16):
        return array.astype(np.uint8).view(np.int8) if bits == 8 else array.astype(np.int16)
    if array.dtype == np.int32 and bits < 32:
        return array.astype(np.uint16)
    if kind == UNSIGNED and array.dtype == np.int32:
        return np.ascontiguousarray(array, np.int32).view(np.uint32)
    return array


def bright(array: Array, tags: dict[int, Any]) -> Array:
    """16-bit gray with large as bright, which Pillow sees to for fewer bits only."""
    inverted = array.dtype == np.uint16 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 65535 - array if inverted else array


def palette(tags: dict[int, Any]) -> Array | None:
    """The (N, 3) colours of a palette, if 8 bits do not hold them: old writers used numbers below 256, others 65536."""
    if COLOURS not in tags:
        return None
    colours = np.array(tags[COLOURS], np.int64).reshape(3, -1).T
    if colours.max(initial=0) < 256:
        return colours.astype(np.uint8)
    upper = colours >> 8
    exact = (colours == upper * 257).all() or (colours == upper * 256).all()
    return None if exact else colours.astype(np.uint16)


def _first(tags: dict[int, Any], tag: int, default: int) -> int:
    found = tags.get(tag, default)
    return int(found[0] if isinstance(found, tuple) else found)
