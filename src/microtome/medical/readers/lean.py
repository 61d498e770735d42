"""Numbers as they are kept in memory: at most 32 bits each, in the machine's own byte order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from microtome.errors import DataError, ReadError
from microtome.types import Array

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)


def lean(array: Array, path: Path) -> Array:
    """Wide floats and 64-bit integers as float32, truth values as uint8; everything else keeps its type.

    Raises:
        ReadError: values that are no real numbers.
        DataError: finite values beyond what float32 holds, or all of them so small that nothing would be left.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biuf":
        raise ReadError(f"{path} holds {array.dtype} values, not an image.", "Convert them to real numbers first.")
    if kind == "b":
        return array.astype(np.uint8)
    if kind == "f" or size > 4:
        with np.errstate(all="ignore"):
            narrow = array.astype(np.float32)
        if size > 4 and array.size:
            _check(array, narrow, path)
        return narrow
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check(array: Array, narrow: Array, path: Path) -> None:
    peak = max(abs(float(narrow.min())), abs(float(narrow.max())))
    lost = int((np.isinf(narrow) & np.isfinite(array)).sum()) if peak == np.inf else 0
    if lost:
        raise DataError(
            f"{path} holds {lost:,} values of more than {LARGEST:.1e}, the largest number of 32 bits.",
            "Divide the image by a constant, and store it as float32.",
        )
    if peak == 0 and array.any():
        raise DataError(
            f"{path} holds values below {SMALLEST:.1e} only, which 32 bits cannot tell from 0.",
            "Multiply the image by a constant, and store it as float32.",
        )
