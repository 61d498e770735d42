"""Carry out a `Pipeline` up to the network: image → array, and the geometry of the way back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import nibabel
import numpy as np

from microtome.errors import DataError, GeometryError
from microtome.medical.inputs import with_inputs
from microtome.medical.intensities import Line, normalize, shift
from microtome.medical.pipeline import Pipeline
from microtome.medical.resampling import resample
from microtome.types import Array, Image

SAME_SPACING = 1e-3  # mm: MONAI's tolerance; an axis that is closer than that to its new spacing keeps its own
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL's convert("L")


@dataclass(frozen=True)
class Prepared:
    """An image as the network gets it, and what the way back needs.

    Attributes:
        array: float32 (C, *S); behind the image's channels those of further inputs on its grid, see `medical.inputs`.
        content: size of the image within S; the rest is padding.
        start: where it begins within S.
        box: where the content lies in the oriented image.
        oriented: spatial size of the oriented image.
        flips: per axis of the original image, whether it was reversed.
        order: the original axis behind each axis of the oriented image.
        steps: per axis, how many voxels of the crop lie between the centres of two of the content, where their first
            ones have one centre; None where both share their outer borders, see `Pipeline.align`.
        apart: the axis of S along which scores come back by nearest neighbour, slice by slice, see `Pipeline.coarse`.
        numbers: further inputs that are numbers, float32 (K,), by name.
        back: what each channel of the image is multiplied with, and what is added then, to undo its normalization.
    """

    array: Array
    content: tuple[int, ...]
    start: tuple[int, ...]
    box: tuple[slice, ...]
    oriented: tuple[int, ...]
    flips: tuple[bool, ...]
    order: tuple[int, ...]
    apart: int | None = None
    steps: tuple[float, ...] | None = None
    numbers: Mapping[str, Array] = field(default_factory=dict)
    back: tuple[Line, ...] = ()

    @property
    def inner(self) -> tuple[slice, ...]:
        """Where the content lies within S."""
        return tuple(slice(begin, begin + size) for begin, size in zip(self.start, self.content, strict=True))

    @property
    def steps_back(self) -> tuple[float, ...] | None:
        """How many voxels of the content lie between the centres of two of the crop."""
        return None if self.steps is None else tuple(1 / step for step in self.steps)

    @property
    def resampled(self) -> bool:
        """Whether the content is on another grid than the crop."""
        return self.content != self.crop or self.steps is not None

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
    box = _box(view, pipeline)
    # A copy in any case: what follows works in place and must not touch the caller's array.
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is refused next
        array = np.array(view[(slice(None), *box)], dtype=np.float32, order="C")
    if image.array.dtype.kind == "f" and not (math.isfinite(array.min()) and math.isfinite(array.max())):
        raise DataError("The image holds NaN or infinite values.", "Remove the case or repair the file.")
    spacing = [image.spacing[axis] for axis in order]
    steps = _steps(spacing, pipeline)
    content = _size(array.shape[1:], spacing, pipeline, steps)
    wanted = [new or old for old, new in zip(spacing, pipeline.spacing or spacing, strict=True)]
    resampled = functools.partial(
        resample,
        size=content,
        antialias=antialiased(pipeline, pipeline.interpolation),
        how=pipeline.interpolation,
        apart=_apart(spacing, wanted, pipeline),
        steps=steps,
    )
    array, back = _values(array, image.array.dtype, pipeline, resampled)
    array, start = _pad(array, pipeline)
    apart = _apart(wanted, spacing, pipeline)
    return Prepared(array, content, start, box, oriented, flips, order, apart, _moved(steps), back=back)


def _values(
    array: Array, stored: np.dtype, pipeline: Pipeline, resampled: Callable[[Array], Array]
) -> tuple[Array, tuple[Line, ...]]:
    """Bring a crop (C, *S) to its new size, clip and normalize it, in the pipeline's order; and the way back."""
    if not pipeline.normalize_first:
        array = resampled(array)
    back = normalize(array, stored, pipeline)
    if array.shape[0] < pipeline.channels:
        array = np.repeat(array, pipeline.channels, axis=0)
    lines = shift(array, pipeline, back)
    return resampled(array) if pipeline.normalize_first else array, lines


def antialiased(pipeline: Pipeline, how: str) -> bool:
    """Whether what shrinks is averaged: if that is wanted, or of pictures, and interpolation is linear."""
    wanted = pipeline.spatial_dims == 2 if pipeline.antialias is None else pipeline.antialias
    return wanted and how == "linear"


def restore(labels: Array, prepared: Prepared) -> Array:
    """Put a label map of the size of `prepared.box` back on the image's own grid; outside the box is label 0."""
    if labels.shape != prepared.oriented:
        whole = np.zeros(prepared.oriented, labels.dtype)
        whole[prepared.box] = labels
        labels = whole
    back = np.argsort(prepared.order)
    original: Array = np.ascontiguousarray(_flip(labels.transpose(back)[None], prepared.flips)[0])
    return original


def _orientation(image: Image, pipeline: Pipeline) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """Which axes to reverse, and then the order in which to take them."""
    dims = len(image.spatial)
    stored = pipeline.transpose or tuple(range(dims))
    if pipeline.orientation is None and pipeline.spacing is None:
        return (False,) * dims, stored
    if image.affine is None:
        raise GeometryError(
            "The image has no affine, so its orientation and spacing are unknown.",
            "Convert it to NIfTI or DICOM, or take 'orientation' and 'spacing' out of the pipeline.",
        )
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise GeometryError("The affine of the image is singular or not finite.", "Repair the header of the file.")
    if pipeline.orientation is None:
        return (False,) * dims, stored
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


def _box(array: Array, pipeline: Pipeline) -> tuple[slice, ...]:
    """The part (*S) of an oriented image that is kept; the whole where there is no foreground."""
    if pipeline.crop is None:
        return tuple(slice(0, n) for n in array.shape[1:])
    mask: Array = np.any(array != 0 if pipeline.crop == "nonzero" else array > pipeline.crop_threshold, axis=0)
    box = []
    for axis, size in enumerate(mask.shape):
        hits = np.flatnonzero(np.any(mask, axis=tuple(other for other in range(mask.ndim) if other != axis)))
        first, last = (int(hits[0]), int(hits[-1])) if hits.size else (0, size - 1)
        box.append(slice(max(0, first - pipeline.crop_margin), min(size, last + 1 + pipeline.crop_margin)))
    return tuple(box)


def _steps(spacing: Sequence[float], pipeline: Pipeline) -> tuple[float, ...] | None:
    """Per axis, the new spacing in old voxels, where the first voxels of both grids have one centre."""
    if pipeline.align == "borders" or pipeline.spacing is None:
        return None
    pairs = zip(spacing, pipeline.spacing, strict=True)
    return tuple(1.0 if new is None or abs(new - old) <= SAME_SPACING else new / old for old, new in pairs)


def _moved(steps: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The steps, unless every voxel stays where it is."""
    return None if steps is None or set(steps) == {1.0} else steps


def _size(
    size: Sequence[int], spacing: Sequence[float], pipeline: Pipeline, steps: tuple[float, ...] | None
) -> tuple[int, ...]:
    if pipeline.size is not None:
        return (*size[: len(size) - len(pipeline.size)], *pipeline.size)
    if pipeline.spacing is None:
        return tuple(size)
    if steps is not None:
        return tuple(round((n - 1) / step + 1) for n, step in zip(size, steps, strict=True))
    axes = zip(size, spacing, pipeline.spacing, strict=True)
    return tuple(n if new is None else max(1, round(n * old / new)) for n, old, new in axes)


def _apart(source: Sequence[float], target: Sequence[float], pipeline: Pipeline) -> int | None:
    """The axis to be resampled apart between grids of these spacings: the one that stands out in the first, or else
    in the second; none where two axes are as coarse (nnU-Net, `separate_z`)."""
    for spacing in (source, target):
        if pipeline.coarse is not None and max(spacing) > pipeline.coarse * min(spacing):
            widest = [axis for axis, step in enumerate(spacing) if step == max(spacing)]
            return widest[0] if len(widest) == 1 else None
    return None


def _pad(array: Array, pipeline: Pipeline) -> tuple[Array, tuple[int, ...]]:
    """Zeros up to the multiple that the network asks for, and where the image begins in there."""
    size = array.shape[1:]
    start = (0,) * len(size)
    if pipeline.patch is not None or pipeline.size is not None:
        return array, start
    fixed = len(size) - pipeline.network_dims  # of slices, their number
    target = [*size[:fixed], *(-(-n // pipeline.divisible) * pipeline.divisible for n in size[fixed:])]
    if target == list(size):
        return array, start
    if pipeline.padding == "both":
        start = tuple((new - old) // 2 for new, old in zip(target, size, strict=True))
    padded = np.zeros((array.shape[0], *target), np.float32)
    padded[(slice(None), *(slice(begin, begin + n) for begin, n in zip(start, size, strict=True)))] = array
    return padded, start
