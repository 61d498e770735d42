"""Two networks on the same cases: predictions, clinical scores, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microtome.clinical.cases import CasePrediction, CaseScores
from microtome.clinical.classification import operating_point as best_threshold
from microtome.clinical.overlap import agreement
from microtome.clinical.segmentation import empty_structures, score_segmentation
from microtome.clinical.summary import summarise_classification, summarise_segmentation
from microtome.errors import LabelError, OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.infer import finish_segmentation, probabilities, scores
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.sliding import Predict
from microtome.progress import Progress, Silent, Stopwatch
from microtome.types import Array, Case

# How far apart two borders may lie and still count as the same (NSD): a voxel of usual size; two pixels of a picture.
TOLERANCE_MM = 1.0
TOLERANCE_PIXELS = 2.0

MOST_TRAIN_CASES = 256  # for the operating point, where there are no tuning cases

DEFAULT_METRIC = {"segmentation": "dice", "classification": "auroc"}


@dataclass(frozen=True)
class Judgement:
    """What the verdict rests on."""

    metric: str | None = None
    margin: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """The two networks that are compared, as functions float32 (N, C, *S) → float32 (N, K, *S) or (N, K)."""

    parent: Predict
    compressed: Predict


@dataclass(frozen=True)
class Evaluation:
    """Parts of `result.json`, and the median seconds of each pipeline stage of the compressed network."""

    parts: dict[str, Any]
    stages: dict[str, float]


def check_metric(task: str, metric: str | None) -> str:
    """Return the metric of the verdict; the task's usual one if None.

    Raises:
        OptionError: the metric belongs to the other task.
    """
    chosen = metric or DEFAULT_METRIC[task]
    known = ("dice", "nsd") if task == "segmentation" else ("auroc", "auprc", "sensitivity", "specificity")
    if chosen.split("/")[0] not in known:
        raise OptionError(f"--metric {chosen} does not fit {task}.", f"Choose one of {', '.join(known)}.")
    return chosen


def evaluate_pair(
    pair: Pair,
    cohort: Cohort,
    pipeline: Pipeline,
    *,
    judgement: Judgement | None = None,
    operating_point: Mapping[str, Any] | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run both networks on the evaluation cases and compare them.

    Args:
        pair: the networks.
        cohort: its evaluation cases are used; for classification the operating point is fixed on its tuning cases.
        pipeline: pre- and post-processing, the same for both.
        judgement: metric, margin and seed of the bootstrap.
        operating_point: one that was fixed before; None fixes it on the parent, on the tuning cases, or on the train
            cases if there are none.
        store: a file that keeps each finished case, so that an interrupted run goes on where it stopped.
        progress: told of each case.

    Raises:
        DataError: a case cannot be read or scored. What is finished stays in `store`.
    """
    judgement, progress = judgement or Judgement(), progress or Silent()
    metric = check_metric(pipeline.task, judgement.metric)
    records = _Store(store)
    run = _segment_case if pipeline.task == "segmentation" else _classify_case
    for case in progress.track(cohort.evaluation, "evaluate", len(cohort.evaluation)):
        if case.id not in records:
            records.add(case.id, run(pair, cohort, case, pipeline))
    rows = [(case, records[case.id]) for case in cohort.evaluation]
    if pipeline.task == "segmentation":
        parts = summarise_segmentation(
            [_case_scores(case, record) for case, record in rows],
            metric=metric,
            margin=judgement.margin,
            seed=judgement.seed,
        )
    else:
        point = operating_point or _fix_operating_point(pair.parent, cohort, pipeline, records, progress)
        parts = summarise_classification(
            [_case_prediction(case, record) for case, record in rows],
            threshold=point["threshold"] if point else None,
            metric=metric,
            margin=judgement.margin,
            seed=judgement.seed,
        )
        parts["operating_point"] = point
    names = rows[0][1]["seconds"]
    stages = {name: float(np.median([record["seconds"][name] for _, record in rows])) for name in names}
    return Evaluation(parts, stages)


def label_map(predict: Predict, cohort: Cohort, case: Case, pipeline: Pipeline) -> Array:
    """Return a case's predicted label map on its own grid."""
    prepared = prepare(cohort.image(case), pipeline)
    return finish_segmentation(scores(predict, prepared, pipeline), prepared, pipeline)


def _segment_case(pair: Pair, cohort: Cohort, case: Case, pipeline: Pipeline) -> dict[str, Any]:
    clock = Stopwatch()
    image = cohort.image(case)
    clock.lap("read")
    prepared = prepare(image, pipeline)
    clock.lap("prepare")
    output = scores(pair.compressed, prepared, pipeline)
    clock.lap("network")
    compressed = finish_segmentation(output, prepared, pipeline)
    clock.lap("finish")
    del output
    parent = finish_segmentation(scores(pair.parent, prepared, pipeline), prepared, pipeline)
    reference = cohort.mask(case, image)
    record: dict[str, Any] = {"agreement": agreement(parent, compressed), "seconds": clock.laps}
    if reference is None:
        return {**record, "parent": {}, "compressed": {}, "empty": []}
    labels = {i: name for i, name in enumerate(pipeline.classes) if i > 0}
    tolerance = TOLERANCE_PIXELS if image.affine is None else TOLERANCE_MM
    for side, prediction in (("parent", parent), ("compressed", compressed)):
        record[side] = score_segmentation(
            prediction, reference, labels=labels, spacing=image.spacing, tolerance=tolerance
        )
    record["empty"] = list(empty_structures(reference, labels=labels))
    return record


def _classify_case(pair: Pair, cohort: Cohort, case: Case, pipeline: Pipeline) -> dict[str, Any]:
    clock = Stopwatch()
    image = cohort.image(case)
    clock.lap("read")
    prepared = prepare(image, pipeline)
    clock.lap("prepare")
    compressed = scores(pair.compressed, prepared, pipeline)
    clock.lap("network")
    parent = scores(pair.parent, prepared, pipeline)
    return {
        "parent": probabilities(parent[None], pipeline)[0].tolist(),
        "compressed": probabilities(compressed[None], pipeline)[0].tolist(),
        "seconds": clock.laps,
    }


def _fix_operating_point(
    parent: Predict, cohort: Cohort, pipeline: Pipeline, records: _Store, progress: Progress
) -> dict[str, Any] | None:
    """Fix the decision threshold on the parent, on cases that are not evaluated; None where there is nothing to fix."""
    if len(pipeline.classes) > 2 or not (cohort.tuning or cohort.train):
        return None
    cases, name = (cohort.tuning, "tuning") if cohort.tuning else (cohort.calibration(MOST_TRAIN_CASES), "training")
    for case in progress.track(cases, "operating point", len(cases)):
        if case.id not in records:
            output = scores(parent, prepare(cohort.image(case), pipeline), pipeline)
            records.add(case.id, {"parent": probabilities(output[None], pipeline)[0].tolist()})
    labelled = [case for case in cases if case.label is not None]
    labels = np.array([case.label for case in labelled])
    if len(set(labels.tolist())) < 2:
        raise LabelError(
            f"the {len(labelled)} {name} cases are of one class only: no operating point can be fixed on them.",
            "Give a larger share with --tuning, or a cohort in which both classes occur.",
        )
    table = np.array([records[case.id]["parent"] for case in labelled])
    return {
        "threshold": best_threshold(table[:, -1], labels),
        "rule": "youden",
        "fixed_on": f"{len(labelled)} {name} cases, parent",
    }


def _case_scores(case: Case, record: Mapping[str, Any]) -> CaseScores:
    return CaseScores(
        case.id,
        case.patient,
        record["parent"],
        record["compressed"],
        agreement=record["agreement"],
        empty=tuple(record["empty"]),
        subgroups=case.subgroups,
    )


def _case_prediction(case: Case, record: Mapping[str, Any]) -> CasePrediction:
    return CasePrediction(
        case.id, case.patient, record["parent"], record["compressed"], label=case.label, subgroups=case.subgroups
    )


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
