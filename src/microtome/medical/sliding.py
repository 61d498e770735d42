"""Segment an image larger than the network's patch: overlapping windows, blended with Gaussian weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from microtome.errors import GeometryError
from microtome.types import Array

Predict = Callable[[Array], Array]

SIGMA = 1 / 8  # of the patch; nnU-Net (Isensee et al., Nature Methods 2021)


def sliding_window(predict: Predict, array: Array, *, patch: Sequence[int], overlap: float, batch: int = 1) -> Array:
    """The network's scores for a whole image, patch by patch.

    Windows stand evenly spaced and cover every voxel; neighbours share at least `overlap` of the patch, to a voxel.
    Scores are blended with Gaussian weights (nnU-Net, Isensee et al. 2021) that add up to one in every voxel. An image
    smaller than the patch gets zeros on both sides, which are cut off again. Needs memory for one (K, *S) array.

    Args:
        predict: float32 (batch, C, *patch) → (batch, K, *patch). The last batch is filled up with copies of its last
            patch, so that the network sees one shape only.
        array: float32 (C, *S).
        patch: window size, one number per spatial axis.
        overlap: in [0, 1).
        batch: windows per call.

    Returns:
        float32 (K, *S).

    Raises:
        GeometryError: the output of the network does not have the size of the patch.
    """
    padded, inner = pad(array, patch)
    axes = [starts(size, p, overlap) for size, p in zip(padded.shape[1:], patch, strict=True)]
    weights = [blending(begins, p) for begins, p in zip(axes, patch, strict=True)]
    windows = list(itertools.product(*(range(len(begins)) for begins in axes)))
    blended: Array | None = None
    for first in range(0, len(windows), batch):
        group = windows[first : first + batch]
        corners = [tuple(begins[i] for begins, i in zip(axes, window, strict=True)) for window in group]
        tiles = [window_of(padded, corner, patch) for corner in corners]
        scores = np.asarray(predict(np.stack(tiles + tiles[-1:] * (batch - len(tiles)))))
        require_windows(scores, batch, patch)
        if blended is None:
            blended = np.zeros((scores.shape[1], *padded.shape[1:]), np.float32)
        for window, corner, tile in zip(group, corners, scores, strict=False):
            target = window_of(blended, corner, patch)
            target += tile * _outer([axis[i] for axis, i in zip(weights, window, strict=True)])
    assert blended is not None  # there is always one window
    return blended[inner]


def tiles(array: Array, *, patch: Sequence[int], overlap: float) -> Iterator[Array]:
    """The windows (C, *patch) that `sliding_window` would give the network, one by one; views where it can be."""
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


def _outer(vectors: Sequence[Array]) -> Array:
    product = vectors[0]
    for vector in vectors[1:]:
        product = product[..., None] * vector
    return product


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
