"""Overlapping windows over an image larger than the network's patch, and the Gaussian weights that blend them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from microtome.errors import GeometryError
from microtome.types import Array

SIGMA = 1 / 8  # of the patch; nnU-Net (Isensee et al., Nature Methods 2021)


def tiles(array: Array, *, patch: Sequence[int], overlap: float) -> Iterator[Array]:
    """The windows (C, *patch) that cover an image, as the network gets them, one by one; views where it can be.

    They stand evenly spaced and cover every voxel; neighbours share at least `overlap` of the patch, to a voxel.
    """
    padded, _ = pad(array, patch)
    axes = [starts(size, p, overlap) for size, p in zip(padded.shape[1:], patch, strict=True)]
    for corner in itertools.product(*axes):
        yield window_of(padded, corner, patch)


def starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First voxels of the windows along one axis: evenly spaced, the first at 0, the last ending at `size`."""
    step = max(1.0, patch * (1 - overlap))
    count = 1 + math.ceil(max(0, size - patch) / step - 1e-9)  # 1 - overlap is not exact: no window for nothing
    return tuple(round(i * (size - patch) / max(1, count - 1)) for i in range(count))


def require_windows(scores: Array, batch: int, patch: Sequence[int]) -> None:
    """Refuse scores that are not those of `batch` windows.

    Raises:
        GeometryError: the output of the network does not have the size of the patch.
    """
    if scores.shape[:1] + scores.shape[2:] != (batch, *patch):
        raise GeometryError(
            f"The network turned windows of {tuple(patch)} into an output of shape {scores.shape}.",
            "Choose a patch size that the network keeps, such as multiples of 16.",
        )


def blending(begins: Sequence[int], patch: int) -> Array:
    """Weights (windows, patch) along one axis; in every voxel, those of all windows add up to one.

    The windows form a full grid, so that products of these weights over the axes add up to one as well. Nothing is left
    to divide by afterwards, and no array of summed weights is needed.
    """
    gauss = np.exp(-0.5 * ((np.arange(patch) - (patch - 1) / 2) / (patch * SIGMA)) ** 2)  # at least exp(-8), never 0
    total = np.zeros(begins[-1] + patch)
    for begin in begins:
        total[begin : begin + patch] += gauss
    return np.array([gauss / total[begin : begin + patch] for begin in begins], np.float32)


def window_of(array: Array, corner: Sequence[int], patch: Sequence[int]) -> Array:
    """The part (C, *patch) of an array (C, *S) that begins at a corner; a view."""
    return array[(slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))]


def pad(array: Array, patch: Sequence[int]) -> tuple[Array, tuple[slice, ...]]:
    """Zeros on both sides up to the patch size, and the slices that cut them off again."""
    sizes = array.shape[1:]
    before = [max(0, p - size) // 2 for p, size in zip(patch, sizes, strict=True)]
    inner = (slice(None), *(slice(b, b + size) for b, size in zip(before, sizes, strict=True)))
    if all(size >= p for size, p in zip(sizes, patch, strict=True)):
        return array, inner
    shape = [max(p, size) for p, size in zip(patch, sizes, strict=True)]
    padded = np.zeros((array.shape[0], *shape), array.dtype)
    padded[inner] = array
    return padded, inner
