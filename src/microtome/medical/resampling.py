"""Images and scores on another grid, axis by axis: each is one product with a banded matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from microtome.types import Array

BLOCK = 32  # output rows per matrix product: the matrix is banded, so zeros are skipped
NEGLIGIBLE = 1e-7  # a spline rests on all values of its axis, but on those far away by less than float32 can hold


def resample(
    array: Array,
    size: Sequence[int],
    *,
    antialias: bool,
    how: str = "linear",
    apart: int | None = None,
    steps: Sequence[float] | None = None,
) -> Array:
    """Resize (C, *S) to (C, *size) along each axis; the grids share their outer borders, unless `steps` are given.

    Linear interpolation is that of `torch.nn.functional.interpolate(align_corners=False)`. With `antialias`, an axis
    that shrinks is averaged over a triangle as wide as the scale asks for (as PIL's BILINEAR). Cubic interpolation is
    that of `scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)`, cut to the range of values, as scikit-image's
    `resize` does.

    Args:
        array: of any type.
        size: of the result.
        antialias: for linear interpolation.
        how: `nearest`, `linear`, `cubic` or `area`.
        apart: an axis of S that is resampled last and by nearest neighbour, each slice by itself.
        steps: per axis, how many old voxels lie between the centres of new ones. The first of both have one centre, and
            beyond the last old one its value goes on.

    Returns:
        float32 (C, *size); the array itself where nothing changes.
    """
    moves: Sequence[float | None] = (None,) * len(size) if steps is None else steps
    same = [old == new and step in (None, 1) for old, new, step in zip(array.shape[1:], size, moves, strict=True)]
    if all(same):
        return array
    axes = [axis for axis in range(len(size)) if axis != apart]
    before = array
    for axis in sorted(axes, key=lambda axis: size[axis] / array.shape[1 + axis]):  # what shrinks comes first
        length = array.shape[1 + axis]
        if not same[axis]:
            matrix = interpolation(length, size[axis], antialias, how, moves[axis])
            array = _apply(matrix, np.asarray(array, np.float32), 1 + axis)
    if how == "cubic" and array is not before:
        kept = (0,) if apart is None else (0, 1 + apart)
        others = tuple(axis for axis in range(array.ndim) if axis not in kept)
        low, high = before.min(axis=others, keepdims=True), before.max(axis=others, keepdims=True)
        np.clip(array, low, high, out=array)
    if apart is not None and size[apart] != array.shape[1 + apart]:
        array = np.take(array, nearest(array.shape[1 + apart], size[apart]), axis=1 + apart)
    return np.asarray(array, np.float32)


def nearest(source: int, target: int, step: float | None = None) -> Array:
    """For each place of an axis of the size `target`, the nearest of one of the size `source`; `step` as `resample`."""
    if step is None:
        places = (np.arange(target) + 0.5) * source / target
    else:
        places = np.rint(_centres(source, target, step))
    whole: Array = places.astype(np.intp)
    return whole


def _centres(source: int, target: int, step: float | None) -> Array:
    """Where the centres of `target` voxels lie among those of `source` ones."""
    places: Array = (np.arange(target) + 0.5) * source / target - 0.5
    return places if step is None else np.clip(np.arange(target) * step, 0, source - 1)


@functools.lru_cache(maxsize=64)
def interpolation(source: int, target: int, antialias: bool, how: str = "linear", step: float | None = None) -> Array:
    """Banded matrix (target, source) of interpolation, half-pixel centres or `step`; rows add up to one. Read-only."""
    centres = _centres(source, target, step)
    if how == "cubic" and source > 1:
        matrix = _splines(source, centres)
    elif how == "nearest":
        matrix = np.zeros((target, source))
        matrix[np.arange(target), nearest(source, target, step)] = 1
    elif how == "area":
        rows, columns = np.arange(target)[:, None], np.arange(source)
        matrix = ((columns >= rows * source // target) & (columns * target < (rows + 1) * source)).astype(np.float64)
    else:
        width = max(1.0, source / target) if antialias else 1.0
        matrix = np.maximum(0.0, 1 - np.abs(np.arange(source) - centres[:, None]) / width)
    weights: Array = (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def _splines(source: int, centres: Array) -> Array:
    """Cubic splines through the values of an axis, whose ends go on as they are, at these places."""
    pad = 12  # as scipy has it: the filter's memory is 0.27 per step
    unit = np.pad(np.eye(source), ((pad, pad), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(unit, order=3, axis=0, mode="mirror")
    places = centres + pad
    first = np.floor(places).astype(np.intp) - 1
    offset = places - first - 1
    weights = [
        (1 - offset) ** 3 / 6,
        (4 - 6 * offset**2 + 3 * offset**3) / 6,
        (1 + 3 * offset + 3 * offset**2 - 3 * offset**3) / 6,
        offset**3 / 6,
    ]
    matrix: Array = sum((w[:, None] * coefficients[first + k] for k, w in enumerate(weights)), np.zeros(()))
    return np.where(np.abs(matrix) > NEGLIGIBLE, matrix, 0)


def _apply(matrix: Array, array: Array, axis: int) -> Array:
    """The matrix times one axis of an array, in blocks of rows that leave out the zeros."""
    shape = array.shape
    last = axis == array.ndim - 1
    array = array.reshape((-1, shape[axis]) if last else (math.prod(shape[:axis]), shape[axis], -1))
    result = np.empty((array.shape[0], matrix.shape[0], *array.shape[2:]), np.float32)
    for first in range(0, matrix.shape[0], BLOCK):
        rows = slice(first, first + BLOCK)
        used = np.flatnonzero(matrix[rows].any(axis=0))
        band = slice(int(used[0]), int(used[-1]) + 1)
        if last:
            np.matmul(array[:, band], matrix[rows, band].T, out=result[:, rows])
        else:
            np.matmul(matrix[rows, band], array[:, band], out=result[:, rows])
    return result.reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])
