"""Two networks on the same cases: predictions, clinical scores, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.stream import Stream, TimedStream
from microtome.progress import Progress, Silent, Stopwatch
from microtome.results import Result
from microtome.runtimes.base import one_by_one
from microtome.tasks import task
from microtome.tasks.base import Judgement, Task, predict_one
from microtome.types import Batch, Case


@dataclass(frozen=True)
class Pair:
    """The two networks that are compared, each as a stream of inputs."""

    parent: Stream
    compressed: Stream


@dataclass(frozen=True)
class Evaluation:
    """Parts of `result.json`, and the median seconds of each pipeline stage of the compressed network."""

    parts: Result
    stages: dict[str, float]


def streamed(run: Callable[[Any], Any]) -> Stream:
    """Return a network that runs one input at a time as a stream."""

    return partial(one_by_one, run)


def of_output(stream: Stream, image: str, output: str) -> Stream:
    """Return a stream that gives another output than the first.

    Args:
        stream: of a network of several outputs.
        image: name of the input that takes the image.
        output: which one to give.
    """

    def run(batches: Iterable[Batch]) -> Iterator[Any]:
        named: list[bool] = []

        def inputs() -> Iterator[Batch]:
            for x in batches:
                named.append(isinstance(x, Mapping))
                yield x if isinstance(x, Mapping) else {image: x}

        results = stream(inputs())
        try:
            for place, result in enumerate(results):
                yield result if named[place] else result[output]
        finally:
            if isinstance(results, Generator):
                results.close()

    return run


def evaluate_pair(
    pair: Pair,
    cohort: Cohort,
    pipeline: Pipeline,
    judgement: Judgement | None = None,
    *,
    operating_point: Mapping[str, Any] | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run both networks on the evaluation cases and compare them.

    Both go over an image in the way that deployment does: what is measured here is what `predict` will give.

    Args:
        pair: the networks.
        cohort: its evaluation cases are used; an operating point is fixed on others.
        pipeline: pre- and post-processing, the same for both.
        judgement: metric, margin and seed of the bootstrap; None takes the task's usual ones.
        operating_point: one that was fixed before; None fixes it on the parent, on cases that the task chooses.
        store: a file that keeps each finished case, so that an interrupted run goes on where it stopped.
        progress: told of each case.

    Raises:
        DataError: a case cannot be read or scored. What is finished stays in `store`.
    """
    progress, kind = progress or Silent(), task(pipeline.task)
    judgement = replace(
        judgement or Judgement(kind.metric(None)), classes=pipeline.classes, threshold=pipeline.threshold
    )
    records = _Store(store)
    for case in progress.track(cohort.evaluation, "evaluate", len(cohort.evaluation)):
        if case.id not in records:
            record = _run_case(pair, cohort, case, pipeline, kind)
            records.add(case.id, {**record, "remarks": cohort.remarks.of(case.id)})
        cohort.remarks.add(case.id, records[case.id].get("remarks", ()))  # also of cases that were finished before
    rows = [(case, records[case.id]) for case in cohort.evaluation]
    point = operating_point or _fix_operating_point(pair.parent, cohort, pipeline, records, progress)
    parts = kind.summarise(rows, judgement, point)
    names = rows[0][1]["seconds"]
    stages = {name: float(np.median([record["seconds"][name] for _, record in rows])) for name in names}
    return Evaluation(cast(Result, parts), stages)


def _run_case(pair: Pair, cohort: Cohort, case: Case, pipeline: Pipeline, kind: Task) -> dict[str, Any]:
    """Return the record of one case."""
    clock = Stopwatch()
    image = cohort.image(case)
    clock.lap("read")
    prepared = prepare(image, pipeline)
    clock.lap("prepare")
    timed = TimedStream(pair.compressed)
    compressed = predict_one(kind, timed, prepared, pipeline)
    clock.lap("network")
    clock.split("network", timed.seconds, "finish")
    parent = predict_one(kind, pair.parent, prepared, pipeline)
    record = kind.compare(parent, compressed, kind.reference(cohort, case, image), image, pipeline)
    return {**record, "seconds": clock.laps}


def _fix_operating_point(
    parent: Stream, cohort: Cohort, pipeline: Pipeline, records: _Store, progress: Progress
) -> dict[str, Any] | None:
    """Fix the operating point on the parent, on cases that are not evaluated; None where there is nothing to fix."""
    kind = task(pipeline.task)
    cases, called = kind.operating_cases(cohort, pipeline)
    for case in progress.track(cases, "operating point", len(cases)) if cases else ():
        if case.id not in records:
            image = cohort.image(case)
            found = predict_one(kind, parent, prepare(image, pipeline), pipeline)
            records.add(case.id, kind.compare(found, found, None, image, pipeline))
    if not cases:
        return None
    resolved = [kind.resolved(cohort, case) for case in cases]
    return kind.operating_point([records[case.id]["parent"] for case in cases], resolved, called)


class _Store:
    """Finished cases by pseudonym, one JSON line each; a line that was cut off by an interrupt is done again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
                self._records[record.pop("case")] = record
            except (ValueError, KeyError):
                continue
        path.write_text("".join(json.dumps({"case": k, **v}) + "\n" for k, v in self._records.items()))

    def __contains__(self, case: str) -> bool:
        return case in self._records

    def __getitem__(self, case: str) -> dict[str, Any]:
        return self._records[case]

    def add(self, case: str, record: dict[str, Any]) -> None:
        self._records[case] = record
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"case": case, **record}) + "\n")
