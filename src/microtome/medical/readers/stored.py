"""Pixels of DICOM files: in the modality's units, large as bright (PS3.3, C.7.6.3, C.7.5.1.1.2 and C.11.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from microtome.errors import ReadError
from microtome.medical.readers.elements import AGAIN, numbers, rescale, value
from microtome.medical.readers.lean import lean
from microtome.types import Array

# What marks pixels as padding, and the other end of a range of it, by the kind of the pixels.
PADDING = {
    "i": (("PixelPaddingValue", "PixelPaddingRangeLimit"),),
    "f": (
        ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
        ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
    ),
}


@dataclass(frozen=True)
class Pixels:
    """Values of a slice, a picture or a stack of frames, and where they are padding; None where none is declared."""

    array: Array
    padding: Array | None = None

    @property
    def filled(self) -> Array:
        """The values, with padding never brighter than the darkest of what was imaged.

        Padding has no meaning in the modality's units, and is bright where brightness was inverted or the value itself
        is large. Where it is darker it stays.
        """
        if self.padding is None or not self.padding.any() or self.padding.all():
            return self.array
        darkest = self.array[~self.padding].min()
        with np.errstate(invalid="ignore"):
            too_bright = self.padding & ~(self.array <= darkest)  # NaN too
        return np.where(too_bright, darkest, self.array)


def stacked(slices: Sequence[Pixels]) -> Pixels:
    """Several of the same size along a new first axis."""
    array = np.stack([one.array for one in slices])
    if all(one.padding is None for one in slices):
        return Pixels(array)
    none = np.zeros(array.shape[1:], bool)
    return Pixels(array, np.stack([none if one.padding is None else one.padding for one in slices]))


def coloured(array: Array, dataset: Dataset, path: Path) -> Array:
    """Decoded pixels with the colours of their palette, if they have one; in native byte order.

    Raises:
        ReadError: a broken palette.
    """
    if str(value(dataset, "PhotometricInterpretation", path) or "").startswith("PALETTE"):
        try:
            array = _narrow(apply_color_lut(array, dataset)[..., :3])
        except Exception as error:  # whatever a broken palette makes pydicom raise
            raise ReadError(f"{path} has a broken palette.", AGAIN) from error
    return array.astype(array.dtype.newbyteorder("="))


def _narrow(colours: Array) -> Array:
    """Colours of a 16-bit palette as 8 bits, if nothing is lost: most hold numbers of 8 bits, times 256 or 257."""
    upper = colours >> 8
    exact = colours.dtype == np.uint16 and ((colours == upper * 257).all() or (colours == upper * 256).all())
    return upper.astype(np.uint8) if exact else colours


def in_units(array: Array, dataset: Dataset, path: Path, scale: tuple[float, float] | None = None) -> Pixels:
    """Stored values → the modality's units, large as bright. Integers stay integers where nothing is rescaled.

    Args:
        array: gray as stored, or colours.
        dataset: says what the values mean.
        path: to name in errors.
        scale: slope and intercept; None takes those of `dataset`.

    Raises:
        ReadError: a broken element or table.
        DataError: numbers that float32 cannot hold.
    """
    padding = _padding(array, dataset, path)
    inverted = value(dataset, "PhotometricInterpretation", path) == "MONOCHROME1"
    if value(dataset, "ModalityLUTSequence", path) is not None:
        return Pixels(_looked_up(array, dataset, path, inverted=inverted), padding)
    if inverted:
        array = _inverted(array, _bits(dataset, path, 8 * array.dtype.itemsize))
    slope, intercept = scale or rescale(dataset, path)
    if (slope, intercept) == (1.0, 0.0):
        return Pixels(lean(array, path), padding)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if np.isinf(scaled).any():
        scaled = lean(array.astype(np.float64) * slope + intercept, path)  # says what it is
    return Pixels(scaled, padding)


def _bits(dataset: Dataset, path: Path, allocated: int) -> int:
    """BitsStored; where it is missing, the bits that each number takes."""
    stored = numbers(dataset, "BitsStored", path, 1)
    return allocated if stored is None or not 0 < stored[0] <= allocated else int(stored[0])


def _range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _inverted(array: Array, bits: int) -> Array:
    if array.dtype.kind == "f":
        return -array
    low, high = _range(bits, array.dtype.kind == "i")
    inverted: Array = (low + high - np.clip(array.astype(np.int64), low, high)).astype(array.dtype)
    return inverted


def _looked_up(array: Array, dataset: Dataset, path: Path, *, inverted: bool) -> Array:
    try:
        found: Array = np.asarray(apply_modality_lut(array, dataset))
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        return (((1 << bits) - 1) - found.astype(np.int64)).astype(np.int32) if inverted else found
    except Exception as error:  # whatever a broken table makes pydicom raise
        raise ReadError(f"{path} has a broken modality look-up table.", AGAIN) from error


def _padding(array: Array, dataset: Dataset, path: Path) -> Array | None:
    """Where gray pixels are padding; None where the file does not say. It is given in stored values."""
    if not str(value(dataset, "PhotometricInterpretation", path) or "").startswith("MONOCHROME"):
        return None
    found = None
    for low, high in _padding_ranges(array, dataset, path):
        inside = np.isnan(array) if np.isnan(low) else (array >= low) & (array <= high)
        found = inside if found is None else found | inside
    return found


def _padding_ranges(array: Array, dataset: Dataset, path: Path) -> Iterator[tuple[float, float]]:
    for keyword, other in PADDING["f" if array.dtype.kind == "f" else "i"]:
        first, limit = _number(dataset, keyword, path), _number(dataset, other, path)
        if first is None:
            continue
        ends = [first, first if limit is None else limit]
        if array.dtype.kind != "f" and not (array == first).any():
            bits = _bits(dataset, path, 8 * array.dtype.itemsize)
            ends = [_wrapped(end, bits, array.dtype.kind == "i") for end in ends]
        yield min(ends), max(ends)


def _number(dataset: Dataset, keyword: str, path: Path) -> float | None:
    found = value(dataset, keyword, path)
    if found is None:
        return None
    try:
        if isinstance(found, bytes):  # of unknown representation
            return float(int.from_bytes(found[:2], "little" if dataset.is_little_endian else "big"))
        return float(found)
    except (TypeError, ValueError) as error:
        raise ReadError(f"{path} has a broken DICOM element {keyword}.", AGAIN) from error


def _wrapped(number: float, bits: int, signed: bool) -> float:
    """A padding value within the range of the pixels: writers give one of signed pixels as unsigned, or the reverse."""
    low, high = _range(bits, signed)
    return number if low <= number <= high or not np.isfinite(number) else (int(number) - low) % (1 << bits) + low
