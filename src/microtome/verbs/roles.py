"""Who is used for what, in which classes: the cohort of a request, and what is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.errors import DataError, LabelError
from microtome.evidence.same_images import Images, Same, without
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.further import with_further
from microtome.medical.pipeline import Pipeline
from microtome.medical.reference_boxes import boxes_on
from microtome.medical.trained_on import evaluating_unseen, without_trained
from microtome.progress import Progress, Silent
from microtome.tasks import task as kind
from microtome.types import Case
from microtome.verbs.options import AUTO, CompressOptions

DRAWN = (
    "Which patients are evaluated was drawn at random: if the network was trained on some of them, it looks better "
    "than it is. Name what it was trained on with --trained-on, or give the split in a manifest."
)
BY_REFERENCE = ("stratified", "foreground")  # choices of calibration cases that look at masks and labels


def read_cohort(path: Path, options: CompressOptions, pipeline: Pipeline | None = None) -> Cohort:
    """Load a cohort as the options say. Patients are set aside for tuning only where something is tuned on them.

    Args:
        path: of the cohort.
        options: how to read it.
        pipeline: of the network, where it is known before; None is the one of the options. It says which columns are
            references, where they are called after what the network gives.
    """
    from microtome.verbs.loading import declared

    known = pipeline or declared(options)
    columns = None if known is None else (known.task, known.classes)
    cohort = _load(path, options, options.tuning, columns)
    if cohort.tuning and not _tunes(cohort, options):
        without = _load(path, options, 0.0, columns)
        if not without.tuning:  # otherwise an official split has them
            note = (
                "No patients were set aside for tuning: there is no operating point to fix on them, and the recipe "
                "does not train."
            )
            cohort = replace(without, notes=(*without.notes, note))
    return cohort if options.trained_on is None else without_trained(cohort, Path(options.trained_on))


def _load(path: Path, options: CompressOptions, tuning: float, columns: tuple[str, Sequence[str]] | None) -> Cohort:
    return load_cohort(
        path,
        format=options.format,
        seed=options.seed,
        tuning=tuning,
        evaluation=options.evaluation,
        patient_pattern=options.patient_pattern,
        columns=columns,
    )


def _tunes(cohort: Cohort, options: CompressOptions) -> bool:
    """Whether task or recipe has a use for tuning patients."""
    from microtome.verbs.recipe import asked

    if kind(cohort.task).tunes(cohort.classes) or options.recipe == AUTO:
        return True
    return any(recipe.trains for recipe in asked(options))


def unseen(cohort: Cohort, trained_on: Sequence[str] | None, options: CompressOptions) -> Cohort:
    """Return the cohort split by what a model says it was trained on, where the options do not say it.

    Raises:
        SplitError: it was trained on all of it.
    """
    if trained_on is None or options.trained_on is not None:
        return cohort
    return evaluating_unseen(cohort, trained_on)


def cohort_notes(cohort: Cohort) -> tuple[str, ...]:
    """Return what a reader of results should know of a cohort."""
    return (*cohort.notes, *cohort.remarks.sentences, *([DRAWN] if cohort.drawn else []))


def stamps(cohort: Cohort) -> list[tuple[float, ...]]:
    """Return size and time of each file of a cohort, and the numbers that networks take beside images."""
    further = [one for case in cohort.cases for one in case.inputs.values()]
    files = {file for case in cohort.cases for file in (*case.image, *case.reference_files)}
    files |= {file for one in further for file in one.files}
    numbers = [one.numbers for one in further if one.numbers]
    return [*numbers, *((file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file())]


def as_classes(cohort: Cohort, pipeline: Pipeline) -> Cohort:
    """Return the cohort with references for the pipeline's task, in the numbers that the network's classes have.

    Raises:
        LabelError: a class of the cohort that is none of the network's.
    """
    return kind(pipeline.task).matched(cohort.of_task(pipeline.task), pipeline)


def check_masks(cohort: Cohort, progress: Progress | None = None) -> None:
    """Look for labels that are no classes, and boxes outside of images, in what is tuned on or evaluated.

    Raises:
        LabelError: there is one.
    """
    cases = [case for case in (*cohort.evaluation, *cohort.tuning) if case.mask is not None or case.boxes is not None]
    for case in (progress or Silent()).track(cases, "check masks", len(cases)) if cases else ():
        try:
            if case.boxes is not None:
                boxes_on(case.boxes, cohort.image(case), str(case.image[0]))
            cohort.mask(case, None)
        except LabelError:
            raise
        except DataError:  # what else is wrong with it is told when it is used
            continue


def calibration_of(
    cohort: Cohort, images: Images, pipeline: Pipeline, options: CompressOptions, progress: Progress | None
) -> tuple[tuple[Cohort, tuple[Case, ...]], Same]:
    """Choose the calibration cases: train cases, or those of another cohort that are neither tuned on nor evaluated.

    Raises:
        OptionError: an unknown way to choose.
        SplitError: all images of the other cohort are evaluated.
    """
    from microtome.batches.selection import select

    asked: dict[str, Any] = {"pipeline": pipeline, "seed": options.seed}
    asked |= {"count": options.calibration_cases, "strategy": options.calibration_choice}
    if options.calibration is None:
        return (cohort, select(cohort, cohort.train, **asked)), Same()
    other = load_cohort(options.calibration, seed=options.seed, evaluation=1.0, tuning=0.0)
    other = _references_of(other, pipeline, needed=options.calibration_choice in BY_REFERENCE)
    other = with_further(other, pipeline, options.inputs)
    other = replace(other, cases=tuple(replace(case, role="train") for case in other.cases))
    other, found = without(other, cohort, images, progress)
    return (other, select(other, other.cases, **asked)), found


def _references_of(cohort: Cohort, pipeline: Pipeline, *, needed: bool) -> Cohort:
    """Return another cohort with the network's classes; without references if they are others and not `needed`.

    Raises:
        LabelError: a class that is none of the network's.
    """
    if cohort.of_task(pipeline.task).task == pipeline.task:
        try:
            return as_classes(cohort, pipeline)
        except LabelError:
            if needed:
                raise
    return replace(cohort, cases=tuple(case.without_reference() for case in cohort.cases))
