"""NIfTI-1, NIfTI-2 and Analyze volumes, through nibabel."""

from __future__ import annotations

import gzip
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from microtome.errors import GeometryError, ReadError
from microtome.medical.readers.kind import GZIP_SIGNATURE
from microtome.types import Array, Image

NIFTI2_SIZES = (540, 0x1C020000)  # what a NIfTI-2 header begins with, in either byte order
AGAIN = "Copy the file again from its source."
# What nibabel raises on broken files: stream errors, header errors, and sizes that no memory holds.
BROKEN = (OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, zlib.error)


def read(path: Path) -> Image:
    """Read a volume: (1, I, J, K), or (C, I, J, K) where the file has a fourth axis, with its affine to RAS+ mm.

    Integers without scaling keep their type; everything else is float32 after slope and intercept (NIfTI-1 standard,
    `scl_slope` and `scl_inter`).

    Raises:
        ReadError: truncated, not NIfTI, or of a numeric type that is no image.
        GeometryError: an affine that has no inverse, or more than four axes.
    """
    array, affine = _load(path)
    if array.dtype.fields:  # RGB triples
        array = np.stack([array[name] for name in array.dtype.names or ()], axis=-1)
    if array.dtype.kind not in "biuf":
        raise ReadError(f"{path} holds {array.dtype} values, not an image.", "Convert them to real numbers first.")
    array = _four_axes(array, path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) == 0:
        raise GeometryError(f"{path} has an affine without inverse.", "Repair the sform or qform of the header.")
    return Image(np.ascontiguousarray(np.moveaxis(_lean(array), 3, 0)), affine)


def _load(path: Path) -> tuple[Array, Array]:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # nibabel warns of odd headers; what matters is checked by us
            with path.open("rb") as stream:
                packed = stream.read(2) == GZIP_SIGNATURE
            image = _unpacked(path) if packed else nibabel.load(path)
            return np.asarray(image.dataobj), np.array(image.affine, dtype=np.float64)
    except ImageFileError as error:
        raise ReadError(f"{path} is not a NIfTI file, or its header is broken.", AGAIN) from error
    except HeaderDataError as error:
        raise ReadError(f"{path} has a broken NIfTI header: {_first_line(error)}.", AGAIN) from error
    except BROKEN as error:
        raise ReadError(
            f"{path} is truncated or damaged: the file has {path.stat().st_size:,} bytes and ends too early.", AGAIN
        ) from error


def _unpacked(path: Path) -> Any:
    """Unpack the whole stream first: nibabel stops before its checksum, and would take damaged voxels for real ones."""
    with gzip.open(path, "rb") as stream:
        content = stream.read()
    second = int.from_bytes(content[:4], sys.byteorder) in NIFTI2_SIZES
    return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)


def _four_axes(array: Array, path: Path) -> Array:
    """(I, J, K, C): missing axes get length 1, empty middle axes of vector files go."""
    shape = list(array.shape)
    while len(shape) > 4 and 1 in shape[3:]:
        shape.pop(3 + shape[3:].index(1))
    shape += [1] * (4 - len(shape))
    if len(shape) > 4:
        raise GeometryError(f"{path} has {len(shape)} axes; three and channels are read.", "Split the file.")
    if 0 in shape:
        raise ReadError(f"{path} holds no voxels: its shape is {array.shape}.", AGAIN)
    return array.reshape(shape)


def _lean(array: Array) -> Array:
    """float64 as float32, and 64-bit integers as float32 as well; native byte order."""
    if array.dtype.kind == "f" or array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
