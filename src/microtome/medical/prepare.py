"""Carry out a `Pipeline` up to the network: image → array, and the geometry of the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import nibabel
import numpy as np

from microtome.errors import DataError, GeometryError
from microtome.medical.inputs import with_inputs
from microtome.medical.pipeline import Pipeline
from microtome.types import Array, Image

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL's convert("L")
FLAT = 1e-6  # a spread below this share of the mean is float32 rounding of a constant image, not signal
BLOCK = 32  # output rows per matrix product when resampling: its matrix is banded, so zeros are skipped


@dataclass(frozen=True)
class Prepared:
    """An image as the network gets it, and what the way back needs.

    Attributes:
        array: float32 (C, *S); behind the image's channels those of further inputs on its grid, see `medical.inputs`.
        content: size of the image within S; the rest is padding at the end of each axis.
        box: where the content lies in the oriented image.
        oriented: spatial size of the oriented image.
        flips: per axis of the original image, whether it was reversed.
        order: the original axis behind each axis of the oriented image.
        numbers: further inputs that are numbers, float32 (K,), by name.
    """

    array: Array
    content: tuple[int, ...]
    box: tuple[slice, ...]
    oriented: tuple[int, ...]
    flips: tuple[bool, ...]
    order: tuple[int, ...]
    numbers: Mapping[str, Array] = field(default_factory=dict)

    @property
    def crop(self) -> tuple[int, ...]:
        """Size of the box: the content before it was resampled."""
        return tuple(part.stop - part.start for part in self.box)


def prepare(image: Image, pipeline: Pipeline) -> Prepared:
    """Turn an image into the network's input: channels, orientation, crop, resampling, intensities, padding.

    What the network takes beside it is prepared with it.

    Raises:
        GeometryError: the number of spatial axes differs, or the orientation is needed and unknown.
        DataError: the number of channels differs, the image holds NaN or infinity, or a further input is missing.
    """
    prepared = _prepared(image, pipeline)
    return with_inputs(prepared, image, pipeline, _prepared) if pipeline.inputs else prepared


def _prepared(image: Image, pipeline: Pipeline) -> Prepared:
    """Prepare an image alone."""
    if len(image.spatial) != pipeline.spatial_dims:
        raise GeometryError(
            f"The image has {len(image.spatial)} spatial axes but the pipeline is {pipeline.spatial_dims}-D.",
            "Choose images or a network of the other kind.",
        )
    if 0 in image.spatial:
        raise GeometryError(f"The image is empty: its size is {image.spatial}.", "Check the file.")
    flips, order = _orientation(image, pipeline)
    view = _flip(_channels(image.array, pipeline), flips).transpose(0, *(axis + 1 for axis in order))
    oriented = view.shape[1:]
    box = _foreground(view, pipeline.crop_threshold) if pipeline.crop else tuple(slice(0, n) for n in oriented)
    # A copy in any case: what follows works in place and must not touch the caller's array.
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is refused next
        array = np.array(view[(slice(None), *box)], dtype=np.float32, order="C")
    if image.array.dtype.kind == "f" and not (math.isfinite(array.min()) and math.isfinite(array.max())):
        raise DataError("The image holds NaN or infinite values.", "Remove the case or repair the file.")
    content = _size(array.shape[1:], [image.spacing[axis] for axis in order], pipeline)
    array = resample(array, content, antialias=pipeline.spatial_dims == 2)
    _intensities(array, image.array.dtype, pipeline)
    if array.shape[0] < pipeline.channels:
        array = np.repeat(array, pipeline.channels, axis=0)
    if pipeline.normalize == "fixed":
        _fixed(array, pipeline)
    return Prepared(_pad(array, pipeline), content, box, oriented, flips, order)


def restore(labels: Array, prepared: Prepared) -> Array:
    """Put a label map of the size of `prepared.box` back on the image's own grid; outside the box is label 0."""
    if labels.shape != prepared.oriented:
        whole = np.zeros(prepared.oriented, labels.dtype)
        whole[prepared.box] = labels
        labels = whole
    back = np.argsort(prepared.order)
    original: Array = np.ascontiguousarray(_flip(labels.transpose(back)[None], prepared.flips)[0])
    return original


def resample(array: Array, size: Sequence[int], *, antialias: bool) -> Array:
    """Resize (C, *S) to (C, *size) by linear interpolation along each axis; the grids share their outer borders.

    As `torch.nn.functional.interpolate(align_corners=False)`. With `antialias`, an axis that shrinks is averaged over a
    triangle as wide as the scale asks for (as PIL's BILINEAR); upsampling is the same either way.

    Returns:
        float32 (C, *size); the array itself where nothing changes.
    """
    shrink_first = sorted(range(len(size)), key=lambda axis: size[axis] / array.shape[1 + axis])
    for axis in shrink_first:
        length = array.shape[1 + axis]
        if size[axis] != length:
            array = _apply(interpolation(length, size[axis], antialias), np.asarray(array, np.float32), 1 + axis)
    return array


def interpolation(source: int, target: int, antialias: bool) -> Array:
    """Banded matrix (target, source) of linear interpolation with half-pixel centres; rows add up to one."""
    scale = source / target
    width = max(1.0, scale) if antialias else 1.0
    centres = (np.arange(target) + 0.5) * scale - 0.5
    matrix = np.maximum(0.0, 1 - np.abs(np.arange(source) - centres[:, None]) / width)
    rows: Array = matrix / matrix.sum(axis=1, keepdims=True)
    return rows.astype(np.float32)


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


def _orientation(image: Image, pipeline: Pipeline) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """Which axes to reverse, and then the order in which to take them."""
    dims = len(image.spatial)
    if pipeline.orientation is None and pipeline.spacing is None:
        return (False,) * dims, tuple(range(dims))
    if image.affine is None:
        raise GeometryError(
            "The image has no affine, so its orientation and spacing are unknown.",
            "Convert it to NIfTI or DICOM, or take 'orientation' and 'spacing' out of the pipeline.",
        )
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise GeometryError("The affine of the image is singular or not finite.", "Repair the header of the file.")
    if pipeline.orientation is None:
        return (False,) * dims, tuple(range(dims))
    start = nibabel.orientations.io_orientation(image.affine)
    target = nibabel.orientations.axcodes2ornt(tuple(pipeline.orientation))
    change = nibabel.orientations.ornt_transform(start, target)
    return tuple(bool(f < 0) for f in change[:, 1]), tuple(int(axis) for axis in np.argsort(change[:, 0]))


def _flip(array: Array, flips: Sequence[bool]) -> Array:
    return array[(slice(None), *(slice(None, None, -1) if flip else slice(None) for flip in flips))]


def _channels(array: Array, pipeline: Pipeline) -> Array:
    """The image's channels as the pipeline wants them; one gray channel is repeated later, when all else is done."""
    if pipeline.grayscale and array.shape[0] == 3:
        array = np.tensordot(LUMINANCE, array.astype(np.float32), axes=1)[None]
    repeats = array.shape[0] == 1 and (pipeline.grayscale or pipeline.spatial_dims == 2)
    if array.shape[0] != pipeline.channels and not repeats:
        raise DataError(
            f"The image has {array.shape[0]} channels but the pipeline expects {pipeline.channels}.",
            "Set 'channels' to what the network takes, and 'grayscale' to turn colour into gray.",
        )
    return array


def _foreground(array: Array, threshold: float) -> tuple[slice, ...]:
    """Bounding box of voxels above the threshold in any channel; the whole image where there is none."""
    mask: Array = np.any(array > threshold, axis=0)
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(np.any(mask, axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, mask.shape[axis]))
    return tuple(box)


def _size(size: Sequence[int], spacing: Sequence[float], pipeline: Pipeline) -> tuple[int, ...]:
    if pipeline.size is not None:
        return pipeline.size
    if pipeline.spacing is None:
        return tuple(size)
    steps = zip(size, spacing, pipeline.spacing, strict=True)
    return tuple(max(1, round(n * old / new)) for n, old, new in steps)


def _intensities(array: Array, stored: np.dtype, pipeline: Pipeline) -> None:
    """Clip and normalize in place, channel by channel; `stored` is the type that the image had in its file."""
    for x in array:  # x is a view of one channel
        if pipeline.window is not None:
            np.clip(x, *pipeline.window, out=x)
        if pipeline.percentiles is not None:
            np.clip(x, *np.percentile(x, pipeline.percentiles), out=x)
        if pipeline.normalize == "unit" and stored.kind in "iu":
            np.divide(x, np.iinfo(stored).max, out=x)
        elif pipeline.normalize == "minmax":
            low, high = pipeline.window or (x.min(), x.max())
            np.subtract(x, low, out=x)
            np.divide(x, (high - low) or 1, out=x)
        elif pipeline.normalize == "zscore":
            _standardize(x)
        elif pipeline.normalize == "zscore_nonzero":
            inside = x != 0
            values = x[inside]
            _standardize(values)
            x[inside] = values


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


def _fixed(array: Array, pipeline: Pipeline) -> None:
    for x, mean, std in zip(array, pipeline.mean or (), pipeline.std or (), strict=True):
        np.multiply(x, 1 / (pipeline.scale * std), out=x)
        np.subtract(x, mean / std, out=x)


def _pad(array: Array, pipeline: Pipeline) -> Array:
    if pipeline.patch is not None or pipeline.size is not None:
        return array
    target = [-(-n // pipeline.divisible) * pipeline.divisible for n in array.shape[1:]]
    if target == list(array.shape[1:]):
        return array
    padded = np.zeros((array.shape[0], *target), np.float32)
    padded[(slice(None), *(slice(0, n) for n in array.shape[1:]))] = array
    return padded
