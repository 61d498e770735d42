"""Overlapping windows over an image larger than the network's patch, and the Gaussian weights that blend them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from microtome.errors import GeometryError
from microtome.medical.pipeline import Pipeline
from microtome.types import Array

FAR = 20.0  # a Gaussian is no narrower: the weights at the border of a window must not vanish in float32


def tiles(array: Array, *, patch: Sequence[int], overlap: float, slices: int | None = None) -> Iterator[Array]:
    """The windows (C, *patch) that cover an image, as the network gets them, one by one; views where it can be.

    They stand evenly spaced and cover every voxel; neighbours share at least `overlap` of the patch, to a voxel. Of
    slices, `patch` is one deep, and the network gets them without that axis, with their neighbours.
    """
    padded, _ = pad(array, patch)
    axes = [starts(size, p, overlap) for size, p in zip(padded.shape[1:], patch, strict=True)]
    for corner in itertools.product(*axes):
        tile = input_of(padded, corner, patch, slices)
        yield tile if slices is None else tile[:, 0]


def starts(size: int, patch: int, overlap: float, *, even: bool = True) -> tuple[int, ...]:
    """First voxels of the windows along one axis: the first at 0, the last ending at `size`.

    Evenly spaced; or a fixed step apart, the last one moved back to the border (MONAI's `sliding_window_inference`).
    """
    step = max(1.0, patch * (1 - overlap))
    if not even:
        step = max(1, int(step))
        return tuple(min(begin, size - patch) for begin in range(0, max(1, size - patch + step), step))
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


def blending(begins: Sequence[int], patch: int, sigma: float | None, *, on_voxel: bool = False) -> Array:
    """Weights (windows, patch) along one axis; in every voxel, those of all windows add up to one.

    The windows form a full grid, so that products of these weights over the axes add up to one as well. Nothing is left
    to divide by afterwards, and no array of summed weights is needed.

    Args:
        begins: first voxels of the windows.
        patch: their size.
        sigma: of the Gaussian, as a share of the patch (1/8 in nnU-Net: Isensee et al., Nature Methods 2021); None is a
            constant weight.
        on_voxel: the Gaussian peaks on a voxel also where the size is even: the one behind the middle.
    """
    peak = patch // 2 if on_voxel else (patch - 1) / 2
    width = max(patch * (sigma or math.inf), patch / FAR)
    gauss = np.exp(-0.5 * ((np.arange(patch) - peak) / width) ** 2)  # never 0
    total = np.zeros(begins[-1] + patch)
    for begin in begins:
        total[begin : begin + patch] += gauss
    return np.array([gauss / total[begin : begin + patch] for begin in begins], np.float32)


def window_of(array: Array, corner: Sequence[int], patch: Sequence[int]) -> Array:
    """The part (C, *patch) of an array (C, *S) that begins at a corner; a view."""
    return array[(slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))]


def input_of(array: Array, corner: Sequence[int], patch: Sequence[int], slices: int | None) -> Array:
    """What the network is given of an array (C, *S) at a corner, with its first axis left in: (C, *patch); a view.

    Of slices, `patch` is one deep, and the neighbours on either side are channels: (slices · C, 1, *rest). Beyond the
    border, the last slice is repeated.
    """
    if slices is None or slices == 1:
        return window_of(array, corner, patch)
    planes = np.clip(np.arange(slices) - slices // 2 + corner[0], 0, array.shape[1] - 1)
    parts = [window_of(array, (int(plane), *corner[1:]), patch) for plane in planes]
    return np.concatenate(parts)


def block_of(pipeline: Pipeline, sizes: Sequence[int]) -> tuple[int, ...] | None:
    """The part of a prepared image of these sizes that the network gets at once; None where that is all of it."""
    if pipeline.slices is None or pipeline.patch is not None:
        return pipeline.tile
    return (1, *sizes[1:])


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
