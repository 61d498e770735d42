"""Does another guess of the pre-processing serve the parent better? A quick look at a few tuning cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from microtome.batches.selection import balanced
from microtome.errors import MicrotomeError
from microtome.evidence.candidates import Judge
from microtome.medical.cohort import Cohort
from microtome.medical.described import describe
from microtome.medical.pipeline import Pipeline
from microtome.medical.stream import Stream
from microtome.metrics import about
from microtome.progress import Progress
from microtome.tasks import task
from microtome.types import Case

CASES = {2: 24, 3: 4}  # pictures and volumes that are looked at, at most
LEAST = 16  # of those that are one number each
SECONDS = 60.0  # after which no further guess is tried
ENOUGH = 0.1  # a margin, which nothing of this rests on
NORMALIZE = ("unit", "minmax", "zscore", "none")


@dataclass(frozen=True)
class Guess:
    """A pipeline, and how well the parent does with it."""

    pipeline: Pipeline
    value: float


def check_guess(
    parent: Stream, cohort: Cohort, pipeline: Pipeline, *, seed: int, free: bool, progress: Progress
) -> str | None:
    """Compare a guess with its neighbours: other normalisations, and pictures of twice or half the size.

    Args:
        parent: runs the network.
        cohort: its tuning cases are looked at, and train cases where these are few. None of evaluation is.
        pipeline: the guess.
        seed: of the choice of cases.
        free: whether the network takes other sizes.
        progress: told of each guess.

    Returns:
        The sentence that warns of it, where another serves the parent better by much.
    """
    cases = _cases(cohort, pipeline, seed)
    if not cases:
        return None
    value = _measured(parent, cohort, cases, seed)
    start = time.perf_counter()
    own = value(pipeline)
    best = Guess(pipeline, -np.inf if own is None else own)
    first = best
    tried = list(_neighbours(pipeline, free=free))
    for other in progress.track(tried, "check the guess", len(tried)):
        if time.perf_counter() - start > SECONDS:
            continue
        found = value(other)
        if found is not None and found > best.value:
            best = Guess(other, found)
    kind = task(pipeline.task)
    if best is first or best.value < first.value + kind.MUCH:
        return None
    title = about(kind.metric(None), kind.OWN).title
    had = "cannot be told" if own is None else f"is {first.value:.2f}"
    return (
        f"The guess of the pre-processing is doubtful: on {len(cases)} cases the parent's {title} {had} with it, and "
        f"{best.value:.2f} with {_changes(pipeline, best.pipeline)}. Declare what the network was trained with: "
        "--pipeline."
    )


def _cases(cohort: Cohort, pipeline: Pipeline, seed: int) -> Sequence[Case]:
    """Return labelled tuning cases, and train cases where these are few; none where all are too few to tell."""
    rng, chosen = np.random.default_rng(seed), list[Case]()
    for pool in (cohort.tuning, cohort.train):
        labelled = [case for case in pool if case.labelled]
        chosen += balanced(labelled, CASES[pipeline.spatial_dims] - len(chosen), rng)
    return chosen if task(pipeline.task).MAPS or len(chosen) >= LEAST else ()


def _measured(parent: Stream, cohort: Cohort, cases: Sequence[Case], seed: int) -> Callable[[Pipeline], float | None]:
    """Return a function: the parent's usual metric with a pipeline, higher is better; None where it cannot run so."""

    def value(pipeline: Pipeline) -> float | None:
        try:
            judge = Judge(parent, cohort, cases, pipeline, margin=ENOUGH, seed=seed)
            found = judge.parent_value()
        except (MicrotomeError, RuntimeError):  # a size that the network refuses
            return None
        return None if found is None else judge.gain(found)

    return value


def _neighbours(pipeline: Pipeline, *, free: bool) -> Iterator[Pipeline]:
    for normalize in NORMALIZE:
        if normalize not in (pipeline.normalize, "fixed"):
            yield replace(pipeline, normalize=normalize)  # type: ignore[arg-type]
    if pipeline.size is not None and pipeline.spatial_dims == 2 and free:
        for factor in (0.5, 2.0):
            yield replace(pipeline, size=tuple(int(n * factor) for n in pipeline.size))


def _changes(pipeline: Pipeline, other: Pipeline) -> str:
    if pipeline.normalize != other.normalize:
        return f'"normalize": "{other.normalize}"'
    if pipeline.size != other.size:
        return f'"size": {list(other.size or ())}'
    return describe(other)
