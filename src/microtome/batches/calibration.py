"""Calibration input: the prepared images of the calibration cases, streamed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from microtome.medical.cohort import Cohort
from microtome.medical.foreground import foreground_points, prepare_labels, window_at
from microtome.medical.inputs import batch_of
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, prepare
from microtome.medical.sliding import block_of, tiles
from microtome.progress import Progress
from microtome.types import Array, Batch, Case

# Windows per case for networks that see patches: the ranges settle with a few, and each costs a run of the network.
WINDOWS_PER_CASE = 4


class CalibrationBatches:
    """Tensors (1, C, *S), float32, or several by name; made anew on each pass: one image is in memory at a time."""

    def __init__(
        self,
        cohort: Cohort,
        cases: Sequence[Case],
        pipeline: Pipeline,
        progress: Progress,
        seed: int = 0,
        *,
        foreground: bool = False,
    ) -> None:
        """Take the cases as given; `seed` chooses windows, and `foreground` has them on labelled structures."""
        self._cohort, self._cases, self._pipeline = cohort, tuple(cases), pipeline
        self._progress, self._seed, self._foreground = progress, seed, foreground
        self._title = "calibrate"

    def titled(self, title: str) -> CalibrationBatches:
        """Return the same, shown under another title."""
        other = copy.copy(self)
        other._title = title
        return other

    def __iter__(self) -> Iterator[Any]:  # a tensor, or several by name
        """Read and prepare case by case."""
        rng = np.random.default_rng(self._seed)
        for case in self._progress.track(self._cases, self._title, len(self._cases)):
            for x in inputs(self._cohort, case, self._pipeline, rng, foreground=self._foreground):
                yield tensors(x)


def inputs(
    cohort: Cohort, case: Case, pipeline: Pipeline, rng: np.random.Generator, *, foreground: bool = False
) -> list[Batch]:
    """Return what the network gets to see of a case, float32 (1, C, *S) each: the image, or some of its windows.

    Of networks with several inputs it is all of them by name.

    With `foreground`, the windows of a case that has a mask are centred on its structures, each in turn.
    """
    image = cohort.image(case)
    prepared = prepare(image, pipeline)
    parts = block_of(pipeline, prepared.array.shape[1:]) is not None
    mask = cohort.mask(case, image) if foreground and parts else None
    return network_inputs(prepared, pipeline, rng, None if mask is None else prepare_labels(mask, prepared))


def network_inputs(
    prepared: Prepared, pipeline: Pipeline, rng: np.random.Generator, labels: Array | None = None
) -> list[Batch]:
    """Return what the network gets to see of a prepared image, batches of one; see `windows`."""
    found = windows(prepared.array, pipeline, rng, labels)
    return [batch_of(array[None], prepared.numbers, pipeline) for array in found]


def tensors(x: Batch) -> Any:
    """Return a batch as torch has it: a tensor, or several by name."""
    if isinstance(x, Mapping):
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in x.items()}
    return torch.from_numpy(x)


def windows(array: Array, pipeline: Pipeline, rng: np.random.Generator, labels: Array | None = None) -> list[Array]:
    """Return a prepared image, or where the network sees patches, up to `WINDOWS_PER_CASE` of its windows.

    Of many windows those with most contrast come first: empty corners say nothing about ranges. With `labels`, a label
    map on the same grid that holds foreground, they stand around random voxels of its structures instead.
    """
    patch, slices = block_of(pipeline, array.shape[1:]), pipeline.slices
    if patch is None:
        return [np.ascontiguousarray(array, np.float32)]
    found = list(tiles(array, patch=patch, overlap=0.0, slices=slices))
    if len(found) > WINDOWS_PER_CASE:
        points = () if labels is None else foreground_points(labels, rng, WINDOWS_PER_CASE)
        if points:
            structures = (points[k] for k in rng.permutation(len(points)))
            centres = itertools.islice(itertools.cycle(structures), WINDOWS_PER_CASE)
            found = [window_at(array, voxels[rng.integers(len(voxels))], patch, slices) for voxels in centres]
        else:
            contrast = np.array([window.std() for window in found])
            likely = np.argsort(contrast, kind="stable")[len(found) // 2 :]
            found = [found[i] for i in rng.choice(likely, min(WINDOWS_PER_CASE, len(likely)), replace=False)]
    return [np.ascontiguousarray(window, np.float32) for window in found]
