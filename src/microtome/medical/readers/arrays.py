"""MedMNIST npz files: `train_images`, `train_labels`, … (Yang et al. 2023, doi 10.1038/s41597-022-01721-8)."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from microtome.errors import ReadError
from microtome.types import Array, Image

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
AGAIN = "Copy the file again from its source."
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, NotImplementedError, MemoryError)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each array, from the headers only: nothing is decompressed beyond them.

    Raises:
        ReadError: missing, truncated, or not an npz file.
    """
    try:
        found = {}
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    version = np.lib.format.read_magic(stream)
                    header = _header(stream, version)
                found[name.removesuffix(".npy")] = header
        return found
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist.", "Check the path.") from None
    except BROKEN as error:
        raise ReadError(f"{path} is truncated or not an npz file.", AGAIN) from error


def _header(stream: Any, version: tuple[int, int]) -> tuple[int, ...]:
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return tuple(read(stream)[0])


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
    """Read one case: (1, H, W) or (3, H, W), or (1, I, J, K) for volumes, without affine.

    Args:
        path: the npz file.
        index: counts through train, then val, then test.

    Raises:
        ReadError: missing, truncated, or fewer images than `index`.
    """
    name, position = locate(path, index)
    array = load(path, name)[position]
    if array.ndim == 3 and array.shape[-1] == 3:
        return Image(np.ascontiguousarray(np.moveaxis(array, 2, 0)))
    return Image(array[None].copy())


def locate(path: Path, index: int) -> tuple[str, int]:
    """The array that holds a case, and the case's position in it."""
    position = index
    sizes = shapes_cached(path)
    for split in SPLITS:
        count = sizes.get(f"{split}_images", (0,))[0]
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
