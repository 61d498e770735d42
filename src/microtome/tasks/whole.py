"""What tasks that give numbers for whole images have in common."""

from __future__ import annotations

import itertools
from abc import ABC
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import DataError
from microtome.medical.cohort import Cohort
from microtome.medical.inputs import batch_of_one, scores_of
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.tasks.base import Task
from microtome.types import Array, Case, Image

if TYPE_CHECKING:
    from torch import Tensor

MOST_TRAIN_CASES = 256  # for the operating point, where there are no tuning cases


class WholeImageTask(Task, ABC):
    """A task that gives a few numbers for each image, whose metrics need all cases together."""

    def compare(
        self,
        parent: Array,
        compressed: Array,
        reference: Any,
        image: Image,
        pipeline: Pipeline,
        *,
        metrics: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Keep what both networks said."""
        return {"parent": parent.tolist(), "compressed": compressed.tolist()}


class NamedAnswersTask(WholeImageTask, ABC):
    """One that gives a number under each name, which a reference may lack."""

    def parts(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the names."""
        return pipeline.classes

    def outputs(self, pipeline: Pipeline) -> frozenset[int]:
        """One per name."""
        return frozenset({len(pipeline.classes)})

    def reference(self, cohort: Cohort, case: Case, image: Image) -> Any:
        """Return a number or None for each name."""
        return case.label

    def training_target(self, case: Case, labels: Array | None) -> Array | float | tuple[float, ...]:
        """Return the reference for each name, NaN where one is missing."""
        assert isinstance(case.label, tuple)
        return tuple(float("nan") if value is None else float(value) for value in case.label)

    def unknown_target(self, size: Sequence[int], pipeline: Pipeline) -> Array:
        """Return NaN for each name."""
        return np.full(len(pipeline.classes), np.nan, np.float32)


def tuning_cases(cohort: Cohort) -> tuple[Sequence[Case], str]:
    """Return the tuning cases, or train cases if there are none, and what they are called."""
    if not (cohort.tuning or cohort.train):
        return (), ""
    return (cohort.tuning, "tuning") if cohort.tuning else (cohort.calibration(MOST_TRAIN_CASES), "training")


def thresholds_of(point: Mapping[str, Any] | None, count: int, declared: float) -> list[float]:
    """Return the threshold of each of several; the pipeline's own where none was fixed."""
    fixed = list((point or {}).get("thresholds") or [])
    fixed += [None] * (count - len(fixed))
    return [declared if value is None else float(value) for value in fixed]


def squared(student: Tensor, teacher: Tensor, _: Tensor | None) -> Tensor:
    """Return the mean squared distance from the teacher: a loss of outputs that are no probabilities."""
    return (student - teacher).square().mean()


def whole_images(pipeline: Pipeline) -> str:
    """Return what is wrong with a pipeline for numbers of whole images; empty where nothing is."""
    if pipeline.patch is not None:
        return "'patch' is for maps only, and this task gives numbers for the whole image"
    if pipeline.mirror or pipeline.skip_empty:
        return "'mirror' and 'skip_empty' are for maps only, and this task gives numbers for the whole image"
    return ""


def outputs_each(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline, finish: Callable[[Array], Array]
) -> Generator[Array | DataError, None, None]:
    """Run whole images, and yield what `finish` makes of each output (1, K), or what was wrong with it."""
    inputs = (batch_of_one(prepared, pipeline) for prepared in images)
    streams = (stream(inputs),) if pipeline.input_shape is not None else (stream([x]) for x in inputs)
    for result in itertools.chain.from_iterable(streams):
        try:
            outcome: Array | DataError = finish(scores_of(result, pipeline)[:1])
        except DataError as error:
            outcome = error
        yield outcome
