"""Pictures of 16 bits per colour, PNG and TIFF: Pillow keeps the upper byte of a number, so it decodes them twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from microtome.errors import ReadError
from microtome.types import Array

COLOURS = ("RGB", "RGBA", "CMYK")
BITS, EXTRA, PLANAR = 258, 338, 284  # TIFF tags
NATIVE = "L" if sys.byteorder == "little" else "B"
TOP = 65535


def is_wide(picture: PIL.Image.Image) -> bool:
    """Whether an opened picture, not yet decoded, has colours of 16 bits, or gray of 16 bits with alpha."""
    if picture.mode not in COLOURS:
        return False
    bits = getattr(picture, "tag_v2", {}).get(BITS, ())
    return 16 in bits if bits else any(";16" in _rawmode(tile) for tile in _tiles(picture))


def decode(path: Path) -> Array:
    """The colours of a wide picture: (H, W, 3), or (H, W) where it is gray; uint16. Alpha is dropped.

    Raises:
        ReadError: a layout in which Pillow decodes the upper bytes only.
    """
    with PIL.Image.open(path) as picture:
        tags, tiles = getattr(picture, "tag_v2", {}), _tiles(picture)
        gray = any(_rawmode(tile).startswith("LA") for tile in tiles)
        plain = picture.mode != "CMYK" and 0 not in tags.get(EXTRA, ()) and all(tile[0] == "raw" for tile in tiles)
        if tags.get(PLANAR) == 2 and not plain:
            raise ReadError(
                f"{path} is a TIFF file with 16-bit colours in separate planes, which cannot be decoded whole.",
                "Save it as 16-bit PNG, or as TIFF with interleaved colours.",
            )
        mode = picture.mode
    if gray:  # four bytes a pixel: gray and alpha, each with its upper byte first
        pair = _decoded(path, lambda found: "RGBA")
        return _join(pair[..., 0], pair[..., 1])
    array = _join(_decoded(path, _upper), _decoded(path, _lower))
    if mode == "CMYK":
        return _rgb(array)
    return _plain(array) if 1 in tags.get(EXTRA, ()) else array[..., :3]


def rawmodes(picture: PIL.Image.Image) -> list[str]:
    """How Pillow will unpack the tiles of an opened picture, such as `L` and `RGB;16B`."""
    return [_rawmode(tile) for tile in _tiles(picture)]


def _tiles(picture: PIL.Image.Image) -> list[Any]:
    return list(getattr(picture, "tile", ()))


def _rawmode(tile: Any) -> str:
    """How Pillow unpacks a tile: the fourth entry, or the first of that."""
    return str(tile[3][0] if isinstance(tile[3], tuple) else tile[3])


def _decoded(path: Path, rawmode: Any) -> Array:
    with PIL.Image.open(path) as picture:
        picture.tile = [retiled(tile, rawmode((tile, picture))) for tile in _tiles(picture)]
        return np.asarray(PIL.ImageOps.exif_transpose(picture))


def retiled(tile: Any, rawmode: str) -> Any:
    """A tile that Pillow will unpack in another way."""
    args = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _order(found: Any) -> tuple[str, str]:
    """A tile's colours, and the order of its bytes: PNG has the upper first, libtiff gives those of the machine."""
    tile, picture = found
    order = "B" if tile[0] == "zip" else NATIVE
    if tile[0] == "raw":
        order = "L" if picture.tag_v2.prefix == b"II" else "B"
    return _rawmode(tile).split(";")[0].replace("RGBa", "RGBA"), order


def _upper(found: Any) -> str:
    colours, order = _order(found)
    return f"{colours};16{order}"


def _lower(found: Any) -> str:
    colours, order = _order(found)
    return f"{colours};16{'L' if order == 'B' else 'B'}"  # of numbers in the other order Pillow keeps the other byte


def _join(upper: Array, lower: Array) -> Array:
    joined: Array = upper.astype(np.uint16) << 8 | lower
    return joined


def _plain(array: Array) -> Array:
    """Colours that were multiplied by alpha (TIFF's associated alpha), as they were before; where alpha is 0, black."""
    alpha = array[..., 3:].astype(np.float64)
    colour = np.divide(array[..., :3] * float(TOP), alpha, out=np.zeros(array[..., :3].shape), where=alpha > 0)
    return np.rint(np.minimum(colour, TOP)).astype(np.uint16)


def _rgb(array: Array) -> Array:
    """CMYK → RGB, with the formula of Pillow for 8 bits."""
    ink, black = array[..., :3].astype(np.float64), array[..., 3:].astype(np.float64)
    return np.rint((TOP - ink) * (TOP - black) / TOP).astype(np.uint16)
