"""MedMNIST npz files: `train_images`, `train_labels`, … (Yang et al. 2023, doi 10.1038/s41597-022-01721-8)."""

from __future__ import annotations

import functools
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from microtome.errors import ReadError
from microtome.medical.readers.lean import lean
from microtome.types import Array, Image

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
DEFLATE = 1032  # times as many bytes as it is given is the most that deflate unpacks; the other methods pack less here
CHANNELS = 4  # an axis as short as this is no axis in space
AGAIN = "Copy the file again from its source."
# What a broken archive, or a broken array in it, makes Python and numpy raise.
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, OSError, EOFError, RuntimeError),
    *(ValueError, TypeError, LookupError, AttributeError, SyntaxError, MemoryError, ArithmeticError, RecursionError),
)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each array, from the headers only: nothing is decompressed beyond them.

    Raises:
        ReadError: missing, truncated, or not an npz file.
    """
    try:
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as stream:
                        found[member.filename.removesuffix(".npy")] = _shape(stream, member)
        return found
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist.", "Check the path.") from None
    except BROKEN as error:
        raise ReadError(f"{path} is truncated or not an npz file.", AGAIN) from error


def _shape(stream: Any, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape in an array's header, if the archive has bytes enough for it: lists are made as long as it says."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    largest = min(member.file_size, DEFLATE * member.compress_size)
    if (math.prod(shape) * dtype.itemsize > largest and not dtype.hasobject) or 0 in shape[1:]:
        raise ValueError("more values than bytes, or none")
    return tuple(shape)


def load(path: Path, name: str) -> Array:
    """One array of the file. The last one is kept, so that a cohort's cases do not each decompress it again.

    Raises:
        ReadError: missing, truncated, not an npz file, or pickled objects instead of numbers.
    """
    try:
        status = path.stat()
        return _load(path, name, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist.", "Check the path.") from None
    except BROKEN as error:
        raise ReadError(f"{path} is truncated or damaged: '{name}' cannot be read.", AGAIN) from error


@functools.lru_cache(maxsize=1)  # one array only: some of these files are gigabytes
def _load(path: Path, name: str, modified: int, size: int) -> Array:
    with np.load(path, allow_pickle=False) as archive:
        array: Array = archive[name]
    array.flags.writeable = False
    return array


def read(path: Path, index: int) -> Image:
    """Read one case: (C, H, W), or (C, I, J, K) for volumes, without affine.

    Args:
        path: the npz file.
        index: counts through train, then val, then test.

    Raises:
        ReadError: missing, truncated, fewer images than `index`, or values that are no real numbers.
        DataError: numbers that float32 cannot hold.
    """
    name, position = locate(path, index)
    array = channels_first(load(path, name)[position], path)
    return Image(np.array(lean(array, path), order="C"))


def channels_first(array: Array, path: Path) -> Array:
    """One image with its channels as first axis.

    An axis of up to four at the end, or else at the beginning, of an image of three axes is its channels, as pictures
    have them; of four axes as volumes have them. Without such an axis there is one channel.

    Raises:
        ReadError: an image of other than two to four axes, or without any values.
    """
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ReadError(f"{path} has images of the shape {array.shape}.", "Wanted: (H, W), (H, W, C) or (I, J, K).")
    if array.ndim == 2:
        return array[None]
    if array.shape[-1] <= CHANNELS:
        return np.moveaxis(array, -1, 0)
    if array.shape[0] <= CHANNELS:
        return array
    if array.ndim == 4:
        raise ReadError(f"{path} has volumes of {array.shape[-1]} channels.", f"Up to {CHANNELS} are read.")
    return array[None]


def locate(path: Path, index: int) -> tuple[str, int]:
    """The array that holds a case, and the case's position in it."""
    position = index
    sizes = shapes_cached(path)
    for split in SPLITS:
        count = (sizes.get(f"{split}_images") or (0,))[0]
        if 0 <= position < count:
            return f"{split}_images", position
        position -= count
    raise ReadError(f"{path} has no image number {index}.", "Read the cohort again: the file has changed.")


def shapes_cached(path: Path) -> dict[str, tuple[int, ...]]:
    """As `shapes`, kept for the last file."""
    try:
        status = path.stat()
    except OSError:
        raise ReadError(f"{path} does not exist.", "Check the path.") from None
    return _shapes(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _shapes(path: Path, modified: int, size: int) -> dict[str, tuple[int, ...]]:
    return shapes(path)
