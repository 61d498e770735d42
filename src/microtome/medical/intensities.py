"""Clipping and normalization of prepared images, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from microtome.medical.pipeline import Pipeline
from microtome.types import Array

FLAT = 1e-6  # a spread below this share of the mean is float32 rounding of a constant image, not signal


Line = tuple[float, float]
"""What a normalized value is multiplied with, and what is added then, to be in the image's own unit again."""


def normalize(array: Array, stored: np.dtype, pipeline: Pipeline) -> list[Line]:
    """Clip and normalize (C, *S) in place.

    Args:
        array: float32, C channels or one that stands for all of them.
        stored: the type that the image had in its file.
        pipeline: says how.

    Returns:
        The way back of each channel, as far as there is one: not for what is clipped, and where parts of a channel are
        left alone, the way back of the rest.
    """
    back: list[Line] = [(1.0, 0.0)] * len(array)
    mask = _inside(array) if "zscore_masked" in pipeline.kinds else None
    for place, x in _parts(array, pipeline.together):
        window, kind = pipeline.windows[place], pipeline.kinds[place]
        if window is not None:
            np.clip(x, *window, out=x)
        if pipeline.percentiles is not None:
            np.clip(x, *np.percentile(x, pipeline.percentiles), out=x)
        if kind == "unit" and stored.kind in "iu":
            np.divide(x, np.iinfo(stored).max, out=x)
            back[place] = (float(np.iinfo(stored).max), 0.0)
        elif kind == "minmax":
            back[place] = _stretch(x, window or (float(x.min()), float(x.max())), pipeline.range)
        elif kind == "zscore":
            back[place] = _standardize(x)
        elif kind in ("zscore_nonzero", "zscore_masked"):
            inside = x != 0 if mask is None else np.broadcast_to(mask, x.shape)
            values = x[inside]
            back[place] = _standardize(values)
            x[inside] = values
    return back[:1] * len(array) if pipeline.together else back


def shift(array: Array, pipeline: Pipeline, back: Sequence[Line]) -> tuple[Line, ...]:
    """(value / `scale` − `mean`) / `std` in place, for the channels (C, *S) that are to be `fixed`.

    Returns:
        The way back of each channel; `back` is that of the others.
    """
    lines = list(back) if len(back) == len(array) else list(back[:1]) * len(array)
    numbers = zip(array, pipeline.kinds, pipeline.mean or (), pipeline.std or (), strict=False)
    for place, (x, kind, mean, std) in enumerate(numbers):
        if kind == "fixed":
            np.multiply(x, 1 / (pipeline.scale * std), out=x)
            np.subtract(x, mean / std, out=x)
            lines[place] = (pipeline.scale * std, pipeline.scale * mean)
    return tuple(lines)


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


def _stretch(x: Array, source: tuple[float, float], target: tuple[float, float]) -> Line:
    """Map one range to another, in place; return the way back."""
    low, high = source
    np.subtract(x, low, out=x)
    np.divide(x, (high - low) or 1, out=x)
    if target != (0, 1):
        np.multiply(x, target[1] - target[0], out=x)
        np.add(x, target[0], out=x)
    gain = ((high - low) or 1) / (target[1] - target[0])
    return gain, low - target[0] * gain


def _standardize(values: Array) -> Line:
    """Mean 0 and standard deviation 1, in place, zeros where all values are the same; return the way back."""
    if values.size == 0:
        return 1.0, 0.0
    mean = values.mean()
    values -= mean
    deviation = np.sqrt(np.mean(np.square(values)))
    if deviation > FLAT * abs(mean):
        values /= deviation
        return float(deviation), float(mean)
    values[...] = 0
    return 1.0, float(mean)
