"""Pictures: PNG, JPEG, TIFF, GIF and BMP, through Pillow."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import PIL.Image
import PIL.ImageOps

from microtome.errors import ReadError
from microtome.medical.readers import jpeg, tiff, wide
from microtome.types import Array, Image

AGAIN = "Copy the file again from its source."
# What Pillow raises on broken files, by format and by where the file breaks off.
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError),
    *(EOFError, MemoryError, OverflowError, ArithmeticError, RuntimeError, struct.error, zlib.error),
)
FEW_BITS = re.compile(r"L;([24])")  # gray of 2 and 4 bits, which Pillow stretches to 255
STRETCHED = {"2": 85, "4": 17}


def read(path: Path) -> Image:
    """Read a picture: (1, H, W) or (3, H, W), without affine.

    Numbers keep their width and sign, also 16-bit colours; one bit becomes 0 and 1, palettes become RGB, alpha is
    dropped, and the EXIF orientation is applied. A palette of grays becomes one channel.

    Raises:
        ReadError: truncated, damaged, too large, or several pictures in one file.
        MissingExtraError: a JPEG of more than 8 bits, without the extra that decodes it.
    """
    array = _load(path, mask=False)
    return Image(array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, 2, 0)))


def read_labels(path: Path) -> Array:
    """Read a mask picture: (H, W); the labels are the gray values as stored, or the indices of a colour palette.

    Raises:
        ReadError: as `read`, or a colour picture whose channels differ.
    """
    array = _load(path, mask=True)
    if array.ndim == 3:
        if not (array == array[..., :1]).all():
            raise ReadError(f"{path} is a colour picture, not a mask.", "Store the labels as gray values.")
        array = array[..., 0]
    return array


def _load(path: Path, *, mask: bool) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, and sizes below Pillow's own limit
            # From a stream: files that Pillow maps into memory by name come out scrambled if they have an orientation.
            with path.open("rb") as stream, PIL.Image.open(stream) as opened:
                frames = getattr(opened, "n_frames", 1)
                if frames > 1:
                    raise ReadError(f"{path} holds {frames} pictures.", "Store one picture per file.")
                array = wide.decode(path) if wide.is_wide(opened) else _decode(opened, mask=mask)
                _check_alpha(opened, array, path)
                return array
    except PIL.UnidentifiedImageError as error:
        if (other := jpeg.description(path)) is not None:
            return jpeg.decode(path, other)
        raise ReadError(
            f"{path} is damaged, or a picture of an unusual kind.",
            "Save it as PNG, or as TIFF with gray or RGB of 8 or 16 bits.",
        ) from error
    except PIL.Image.DecompressionBombError as error:
        raise ReadError(f"{path} is too large to read whole.", "Cut it into tiles first.") from error
    except BROKEN as error:
        raise ReadError(f"{path} is truncated or damaged and cannot be decoded.", AGAIN) from error


def _check_alpha(opened: PIL.Image.Image, array: Array, path: Path) -> None:
    """Alpha is dropped, unless all that a picture shows is in it."""
    if "A" in opened.getbands() and (array == array[:1, :1]).all():
        low, high = opened.getchannel("A").getextrema()
        if low != high:
            raise ReadError(f"{path} has one colour, and shows something by its transparency only.", "Save it as gray.")


def _decode(opened: PIL.Image.Image, *, mask: bool) -> Array:
    tags = tiff.tags_of(opened)
    few = FEW_BITS.match(wide.rawmodes(opened)[0]) if wide.rawmodes(opened) else None
    tiff.use_native_order(opened)
    picture = PIL.ImageOps.exif_transpose(opened)
    if picture.mode in ("P", "PA"):
        return _palette(picture, tiff.palette(tags), mask=mask)
    array = _to_array(picture)
    if array.ndim == 2 and array.dtype.kind != "f" and picture.mode != "1":
        array = tiff.stored(array, tags)
        array = array if mask else tiff.bright(array, tags)
    return array // STRETCHED[few[1]] if few and mask else array


def _palette(picture: PIL.Image.Image, colours: Array | None, *, mask: bool) -> Array:
    indices = np.asarray(picture.convert("P") if picture.mode == "PA" else picture)
    if colours is None:
        plain = _gray_or_rgb(np.asarray(picture.convert("RGB")))
    else:
        plain = _gray_or_rgb(colours[indices])
    return indices if mask and plain.ndim == 3 else plain


def _to_array(picture: PIL.Image.Image) -> Array:
    mode = picture.mode
    if mode == "1":
        return np.asarray(picture, dtype=np.uint8)
    if mode in ("LA", "La"):
        return np.asarray(picture.convert("LA").getchannel("L"))
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if mode in ("L", "I", "F"):
        return np.asarray(picture)
    return np.asarray(picture.convert("RGB"))


def _gray_or_rgb(array: Array) -> Array:
    return array[..., 0] if (array == array[..., :1]).all() else array
