"""A pipeline where nobody declares one: guessed from the images of a cohort."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np

from microtome.errors import DataError, GeometryError
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.tasks import task
from microtome.tasks.base import Task
from microtome.types import Image

SAMPLE = 8  # images that default_pipeline looks at
PICTURE_SIZE = 256
PATCH_LIMIT = 96
STEP = 16  # what four halvings of a U-Net ask of a size
SMALL_PICTURE = 64  # pictures up to this size are used as they are: their networks are made for them
SPACING_SPREAD = 1.1  # spacings that differ by more than 10 % are resampled to their median


def default_pipeline(cohort: Cohort, *, outputs: int | None = None) -> Pipeline:
    """Guess a pipeline from up to 8 training images, spread over the cohort.

    Pictures are resized to 256×256, or keep a common size that is small or divisible by 16. Volumes are turned to RAS
    where their orientation is known, resampled to the median spacing where spacings differ by more than 10 %, and
    segmented in patches of at most 96 voxels a side. `outputs` is the network's number of output channels, if known:
    one channel, or one per class but the background, means sigmoid; one per region that a cohort declares, a mask of
    each.

    Raises:
        DataError: none of the images can be read.
        GeometryError: pictures and volumes in one cohort.
    """
    images = _sample(cohort)
    dims = {len(image.spatial) for image in images}
    if len(dims) > 1:
        raise GeometryError("The cohort mixes pictures and volumes.", "Split it into two cohorts.")
    kind = task(cohort.task)
    common: dict[str, Any] = {
        "task": cohort.task,
        "channels": max(image.array.shape[0] for image in images),
        "spatial_dims": dims.pop(),
        **kind.guessed(cohort, outputs),
    }
    if common["spatial_dims"] == 2:
        unit = all(image.array.dtype == np.uint8 for image in images)
        return Pipeline(**common, size=_picture_size(images), normalize="unit" if unit else "minmax")
    return Pipeline(**common, **_volume_fields(kind, images), normalize="zscore")


def _sample(cohort: Cohort) -> list[Image]:
    train = [case for case in cohort.cases if case.role == "train"] or list(cohort.cases)
    images: list[Image] = []
    for case in train[:: max(1, len(train) // SAMPLE)][:SAMPLE]:
        with contextlib.suppress(DataError):  # single broken files are counted later, case by case
            images.append(cohort.image(case))
    return images or [cohort.image(train[0])]  # raises what is wrong with it


def _picture_size(images: Sequence[Image]) -> tuple[int, ...]:
    sizes = {image.spatial for image in images}
    fits = len(sizes) == 1 and all(n % STEP == 0 or n <= SMALL_PICTURE for n in images[0].spatial)
    return sizes.pop() if fits else (PICTURE_SIZE, PICTURE_SIZE)


def _volume_fields(kind: Task, images: Sequence[Image]) -> dict[str, Any]:
    known = all(image.affine is not None for image in images)
    orders = [_ras_order(image) if known else [0, 1, 2] for image in images]
    sizes = np.array([np.take(image.spatial, order) for image, order in zip(images, orders, strict=True)], dtype=float)
    spacings = np.array([np.take(image.spacing, order) for image, order in zip(images, orders, strict=True)])
    fields: dict[str, Any] = {"orientation": "RAS" if known else None}
    if not kind.MAPS and np.all(sizes == sizes[0]):
        return {**fields, "size": tuple(int(n) for n in sizes[0])}
    if kind.MAPS and np.any(spacings.max(axis=0) > SPACING_SPREAD * spacings.min(axis=0)):
        fields["spacing"] = tuple(_rounded(float(s)) for s in np.median(spacings, axis=0))
        sizes = sizes * spacings / np.array(fields["spacing"])
    block = tuple(min(PATCH_LIMIT, STEP * max(1, math.ceil(n / STEP))) for n in np.median(sizes, axis=0))
    return {**fields, "patch" if kind.MAPS else "size": block}


def _rounded(spacing: float) -> float:
    """To 0.1 µm, or to four digits where that is finer: microscopes have voxels of that size."""
    return round(spacing, max(4, 3 - math.floor(math.log10(spacing))))


def _ras_order(image: Image) -> list[int]:
    axes = nibabel.orientations.io_orientation(image.affine)[:, 0]
    return [int(axis) for axis in np.argsort(axes)]
