"""Pictures: PNG, JPEG, TIFF, GIF and BMP, through Pillow."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import PIL.Image
import PIL.ImageOps

from microtome.errors import ReadError
from microtome.types import Array, Image

AGAIN = "Copy the file again from its source."
# What Pillow raises on broken files, by format and by where the file breaks off.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, MemoryError, struct.error)


def read(path: Path) -> Image:
    """Read a picture: (1, H, W) or (3, H, W), without affine.

    8 and 16 bits are kept as they are, one bit becomes 0 and 1, palettes become RGB, alpha is dropped, and the EXIF
    orientation is applied. A palette of grays becomes one channel.

    Raises:
        ReadError: truncated, damaged, too large, or several pictures in one file.
    """
    array = _load(path, palette=False)
    return Image(array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, 2, 0)))


def read_labels(path: Path) -> Array:
    """Read a mask picture: (H, W) integers; the labels are the gray values, or the indices of a colour palette.

    Raises:
        ReadError: as `read`, or a colour picture whose channels differ.
    """
    array = _load(path, palette=True)
    if array.ndim == 3:
        if not (array == array[..., :1]).all():
            raise ReadError(f"{path} is a colour picture, not a mask.", "Store the labels as gray values.")
        array = array[..., 0]
    return array


def _load(path: Path, *, palette: bool) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, and sizes below Pillow's own limit
            with PIL.Image.open(path) as opened:
                frames = getattr(opened, "n_frames", 1)
                if frames > 1:
                    raise ReadError(f"{path} holds {frames} pictures.", "Store one picture per file.")
                return _to_array(PIL.ImageOps.exif_transpose(opened), palette=palette)
    except PIL.UnidentifiedImageError as error:
        raise ReadError(f"{path} is damaged, or a picture of an unusual kind.", "Save it as PNG or TIFF.") from error
    except PIL.Image.DecompressionBombError as error:
        raise ReadError(f"{path} is too large to read whole.", "Cut it into tiles first.") from error
    except (*BROKEN, zlib.error) as error:
        raise ReadError(f"{path} is truncated or damaged and cannot be decoded.", AGAIN) from error


def _to_array(picture: PIL.Image.Image, *, palette: bool) -> Array:
    mode = picture.mode
    if mode == "1":
        return np.asarray(picture, dtype=np.uint8)
    if mode in ("P", "PA"):
        plain = _gray_or_rgb(picture.convert("RGB"))
        return np.asarray(picture.convert("P") if palette and plain.mode == "RGB" else plain)
    if mode == "LA":
        return np.asarray(picture.convert("L"))
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if mode == "I":
        return _integers(np.asarray(picture))
    if mode in ("L", "F"):
        return np.asarray(picture)
    return np.asarray(picture.convert("RGB"))


def _integers(array: Array) -> Array:
    """Pillow opens some 16-bit files with 32 bits: give them their type back."""
    return array.astype(np.uint16) if array.min() >= 0 and array.max() <= 65535 else array


def _gray_or_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    red, green, blue = (np.asarray(channel) for channel in picture.split())
    return picture.getchannel(0) if (red == green).all() and (red == blue).all() else picture
