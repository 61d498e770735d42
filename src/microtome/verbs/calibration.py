"""Calibration input: the prepared images of the calibration cases, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.sliding import tiles
from microtome.progress import Progress
from microtome.types import Array, Case

# Windows per case for networks that see patches: the ranges settle with a few, and each costs a run of the network.
WINDOWS_PER_CASE = 4


class CalibrationBatches:
    """Tensors (1, C, *S), float32, made anew on each pass: one image is in memory at a time."""

    def __init__(
        self, cohort: Cohort, cases: Sequence[Case], pipeline: Pipeline, progress: Progress, seed: int = 0
    ) -> None:
        """Take the cases as given; `seed` chooses windows."""
        self._cohort, self._cases, self._pipeline = cohort, tuple(cases), pipeline
        self._progress, self._seed = progress, seed
        self.title = "calibrate"

    def __iter__(self) -> Iterator[Tensor]:
        """Read and prepare case by case."""
        rng = np.random.default_rng(self._seed)
        for case in self._progress.track(self._cases, self.title, len(self._cases)):
            for array in inputs(self._cohort, case, self._pipeline, rng):
                yield torch.from_numpy(array[None])


def inputs(cohort: Cohort, case: Case, pipeline: Pipeline, rng: np.random.Generator) -> list[Array]:
    """Return what the network gets to see of a case, float32 (C, *S) each: the image, or some of its windows.

    Of many windows those with most contrast come first: empty corners say nothing about ranges.
    """
    array = prepare(cohort.image(case), pipeline).array
    if pipeline.patch is None:
        return [np.ascontiguousarray(array, np.float32)]
    windows = list(tiles(array, patch=pipeline.patch, overlap=0.0))
    if len(windows) > WINDOWS_PER_CASE:
        contrast = np.array([window.std() for window in windows])
        likely = np.argsort(contrast, kind="stable")[len(windows) // 2 :]
        windows = [windows[i] for i in rng.choice(likely, min(WINDOWS_PER_CASE, len(likely)), replace=False)]
    return [np.ascontiguousarray(window, np.float32) for window in windows]
