"""Clipping and normalization of prepared images, in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from microtome.medical.pipeline import Pipeline
from microtome.types import Array

FLAT = 1e-6  # a spread below this share of the mean is float32 rounding of a constant image, not signal


def normalize(array: Array, stored: np.dtype, pipeline: Pipeline) -> None:
    """Clip and normalize (C, *S) in place.

    Args:
        array: float32, C channels or one that stands for all of them.
        stored: the type that the image had in its file.
        pipeline: says how.
    """
    mask = _inside(array) if "zscore_masked" in pipeline.kinds else None
    for place, x in _parts(array, pipeline.together):
        window, kind = pipeline.windows[place], pipeline.kinds[place]
        if window is not None:
            np.clip(x, *window, out=x)
        if pipeline.percentiles is not None:
            np.clip(x, *np.percentile(x, pipeline.percentiles), out=x)
        if kind == "unit" and stored.kind in "iu":
            np.divide(x, np.iinfo(stored).max, out=x)
        elif kind == "minmax":
            _stretch(x, window or (float(x.min()), float(x.max())), pipeline.range)
        elif kind == "zscore":
            _standardize(x)
        elif kind in ("zscore_nonzero", "zscore_masked"):
            inside = x != 0 if mask is None else np.broadcast_to(mask, x.shape)
            values = x[inside]
            _standardize(values)
            x[inside] = values


def shift(array: Array, pipeline: Pipeline) -> None:
    """(value / `scale` − `mean`) / `std` in place, for the channels (C, *S) that are to be `fixed`."""
    numbers = zip(array, pipeline.kinds, pipeline.mean or (), pipeline.std or (), strict=False)
    for x, kind, mean, std in numbers:
        if kind == "fixed":
            np.multiply(x, 1 / (pipeline.scale * std), out=x)
            np.subtract(x, mean / std, out=x)


def _parts(array: Array, together: bool) -> Iterator[tuple[int, Array]]:
    """Views of what is normalized at once, and the first channel in each."""
    if together:
        yield 0, array
    else:
        yield from enumerate(array)


def _inside(array: Array) -> Array:
    """Where any channel (C, *S) is not 0, and the holes in there (nnU-Net's nonzero mask)."""
    mask: Array = ndimage.binary_fill_holes(np.any(array != 0, axis=0))
    return mask


def _stretch(x: Array, source: tuple[float, float], target: tuple[float, float]) -> None:
    """Map one range to another, in place."""
    low, high = source
    np.subtract(x, low, out=x)
    np.divide(x, (high - low) or 1, out=x)
    if target != (0, 1):
        np.multiply(x, target[1] - target[0], out=x)
        np.add(x, target[0], out=x)


def _standardize(values: Array) -> None:
    """Mean 0 and standard deviation 1, in place; zeros where all values are the same."""
    if values.size == 0:
        return
    mean = values.mean()
    values -= mean
    deviation = np.sqrt(np.mean(np.square(values)))
    if deviation > FLAT * abs(mean):
        values /= deviation
    else:
        values[...] = 0
