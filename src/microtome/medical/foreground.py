"""Reference labels on the network's grid, and windows around what they mark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import GeometryError
from microtome.medical.resampling import nearest, resample
from microtome.types import Array

if TYPE_CHECKING:
    from microtome.medical.prepare import Prepared


def prepare_labels(labels: Array, prepared: Prepared, *, smooth: bool = False) -> Array:
    """Put a label map on the grid of a prepared image, by nearest neighbour; padding is label 0.

    Where it is `smooth`, each label's mask is interpolated linearly and the largest counts; of equals, the nearest.

    Args:
        labels: integers of the image's own spatial shape.
        prepared: what `prepare` returned for the image.
        smooth: see above.

    Returns:
        Labels of the type given, of the spatial shape of `prepared.array`.

    Raises:
        GeometryError: the labels are not of the image's shape.
    """
    flips = tuple(slice(None, None, -1) if flip else slice(None) for flip in prepared.flips)
    oriented = labels[flips].transpose(prepared.order) if labels.ndim == len(flips) else labels
    if oriented.shape != prepared.oriented:
        raise GeometryError(
            f"The labels have the size {oriented.shape}, the image {prepared.oriented}.", "Check the mask."
        )
    result = _nearest(oriented[prepared.box], prepared)
    if smooth and prepared.resampled:
        result = _smooth(oriented[prepared.box], result, prepared)
    whole = np.zeros(prepared.array.shape[1:], labels.dtype)
    whole[prepared.inner] = result
    return whole


def _nearest(labels: Array, prepared: Prepared) -> Array:
    """Labels of the crop on the content's grid."""
    steps = prepared.steps or (None,) * labels.ndim
    for axis, (source, target, step) in enumerate(zip(prepared.crop, prepared.content, steps, strict=True)):
        labels = np.take(labels, nearest(source, target, step), axis=axis)
    return labels


def _smooth(labels: Array, near: Array, prepared: Prepared) -> Array:
    """Labels of the crop on the content's grid, where `near` is what nearest neighbours say."""
    found, best, of_near = near.copy(), np.zeros(near.shape, np.float32), np.zeros(near.shape, np.float32)
    grid: dict[str, Any] = {"antialias": False, "steps": prepared.steps, "apart": prepared.apart}
    for label in np.unique(labels):
        share = resample((labels == label)[None].astype(np.float32), prepared.content, **grid)[0]
        found[share > best] = label
        np.maximum(best, share, out=best)
        np.copyto(of_near, share, where=near == label)
    np.copyto(found, near, where=of_near >= best)
    return found


def foreground_points(labels: Array, rng: np.random.Generator, most: int) -> tuple[Array, ...]:
    """Return up to `most` random voxels of each label above 0, one array (n, D) per label in the order of the labels.

    The choice of voxels is what nnU-Net keeps of each case to centre patches on (Isensee et al., Nature Methods 2021).
    """
    flat = np.flatnonzero(labels)
    values = labels.reshape(-1)[flat]
    points = []
    for value in np.unique(values):
        voxels = flat[values == value]
        if len(voxels) > most:
            voxels = rng.choice(voxels, most, replace=False)
        points.append(np.stack(np.unravel_index(voxels, labels.shape), axis=1))
    return tuple(points)


def window_at(array: Array, centre: Sequence[int], patch: Sequence[int], slices: int | None = None) -> Array:
    """Return the window (C, *patch) around a voxel, moved to lie within the array (C, *S) as far as that is possible.

    An array that is smaller than the patch gets zeros on both sides. A view where it can be. Of slices, `patch` is one
    deep, and what is returned is what the network gets: (slices · C, *rest).
    """
    sizes = array.shape[1:]
    if slices is not None:
        planes = np.clip(np.arange(slices) - slices // 2 + centre[0], 0, sizes[0] - 1)
        parts = [window_at(array[:, plane], centre[1:], patch[1:]) for plane in planes]
        return np.concatenate(parts) if slices > 1 else parts[0]
    axes = list(zip(centre, sizes, patch, strict=True))
    corner = [min(max(0, int(c) - p // 2), max(0, n - p)) for c, n, p in axes]
    window = array[(slice(None), *(slice(begin, begin + p) for begin, p in zip(corner, patch, strict=True)))]
    if window.shape[1:] == tuple(patch):
        return window
    padded = np.zeros((array.shape[0], *patch), array.dtype)
    before = [max(0, p - n) // 2 for _, n, p in axes]
    padded[(slice(None), *(slice(b, b + n) for b, n in zip(before, window.shape[1:], strict=True)))] = window
    return padded
