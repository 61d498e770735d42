"""One parent, many candidates: what each would lose on the same cases, as the final evaluation would say it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.clinical.noninferiority import chosen_margin
from microtome.errors import LabelError, SplitError
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, prepare
from microtome.medical.stream import Stream
from microtome.metrics import about, base
from microtome.progress import Progress, Silent
from microtome.tasks import task
from microtome.tasks.base import Judgement, Record, predict_one
from microtome.types import Array, Case, Image, Interval

# Prepared images that are kept between candidates, in bytes; what is beyond is read anew each time.
KEPT = 1 << 30
BLANK = Image(np.zeros((1, 0)))  # no metric of a whole image looks at it


@dataclass(frozen=True)
class Judged:
    """What a candidate would lose.

    Attributes:
        value: the metric of the candidate.
        parent: of the parent, on the same cases.
        difference: candidate − parent, with its 95 % interval by patient.
        lower: the one-sided 95 % bound of the difference that the verdict rests on.
        non_inferior: True, False or None, as in the final verdict.
        worst: the worst subgroup's difference; the whole cohort's where there are none.
        agreement: mean share of voxels, or share of cases, with the parent's label.
        losses: structures, classes and other metrics that lost more than their limit, such as `dice/tumour`.
    """

    value: float | None
    parent: float | None
    difference: Interval
    lower: float | None
    non_inferior: bool | None
    worst: float | None
    agreement: float
    losses: tuple[str, ...] = ()


class Judge:
    """Runs candidates on a fixed set of cases; the parent's side is computed once.

    Of maps only the metric of the verdict is scored: the others are for the final evaluation.
    """

    def __init__(
        self,
        parent: Stream,
        cohort: Cohort,
        cases: Sequence[Case],
        pipeline: Pipeline,
        *,
        metric: str | None = None,
        margin: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Run the parent on the cases.

        Args:
            parent: runs it.
            cohort: where the cases belong.
            cases: to judge by.
            pipeline: of the parent and of every candidate.
            metric: what is judged by; None is the task's usual one.
            margin: the acceptable loss of it; None is its default.
            seed: of the bootstrap.
            progress: told of each case.

        Raises:
            OptionError: the task does not measure the metric.
            SplitError: there are no cases, or none with a reference.
        """
        self._kind = task(pipeline.task)
        self.metric = self._kind.metric(metric, pipeline)
        self.margin = chosen_margin(self.metric, margin, self._kind.OWN)
        self._cohort, self._pipeline = cohort, pipeline
        self._judgement = Judgement(self.metric, self.margin, seed, pipeline.classes, pipeline.threshold)
        self._cases, self._progress = tuple(cases), progress or Silent()
        self._kept: dict[str, Prepared] = {}
        self._room = KEPT
        if not any(case.labelled for case in self._cases):
            raise SplitError(
                f"none of the {len(self._cases)} cases to tune on has a reference.",
                "Give a share of labelled patients with --tuning.",
            )
        self._parent = {case.id: self._predict(parent, case) for case in self._track("parent")}

    def __call__(self, candidate: Stream, name: str = "judge") -> Judged:
        """Run a candidate, and compare it with the parent."""
        rows = [self._row(case, self._predict(candidate, case)) for case in self._track(name)]
        parts = self._kind.summarise(rows, self._judgement, self._point(rows))
        verdict, change = parts["verdict"], parts["difference"].get(self.metric) or {}
        others = [
            group["difference"].get(self.metric, {}).get("value")
            for groups in parts.get("subgroups", {}).values()
            for group in groups.values()
        ]
        known = [value for value in [*others, change.get("value")] if value is not None]
        return Judged(
            parts["compressed"]["metrics"].get(self.metric, {}).get("value"),
            parts["parent"]["metrics"].get(self.metric, {}).get("value"),
            Interval(change.get("value"), change.get("low"), change.get("high")),
            verdict["lower"],
            verdict["non_inferior"],
            min(known, key=self.gain, default=None),
            float(parts["agreement"]["value"]),
            tuple(loss["metric"] for loss in verdict.get("losses", ())),
        )

    def gain(self, difference: float) -> float:
        """Return what a difference of the metric gains: it falls below zero where something is lost."""
        return -difference if about(self.metric, self._kind.OWN).lower_is_better else difference

    def parent_value(self) -> float | None:
        """Return the parent's metric on the cases; None where it cannot be told."""
        rows = [self._row(case, self._parent[case.id]) for case in self._cases]
        parts = self._kind.summarise(rows, self._judgement, self._point(rows))
        value: float | None = parts["parent"]["metrics"].get(self.metric, {}).get("value")
        return value

    def score(self, candidate: Stream) -> float:
        """Return the metric of a candidate alone, higher is better; it is −∞ where the metric cannot be told."""
        value = self(candidate, "score").value
        return -math.inf if value is None else self.gain(value)

    def _point(self, rows: Sequence[tuple[Case, Record]]) -> Mapping[str, Any] | None:
        """Return the operating point of the parent on these cases, where the task has one and they can tell."""
        if not self._kind.operating_cases(self._cohort, self._pipeline)[0]:
            return None
        with contextlib.suppress(LabelError):
            resolved = [self._kind.resolved(self._cohort, case) for case in self._cases]
            return self._kind.operating_point([record["parent"] for _, record in rows], resolved, "tuning")
        return None

    def _predict(self, stream: Stream, case: Case) -> Array:
        """Return a prediction, such as a label map on the case's own grid."""
        return predict_one(self._kind, stream, self._prepared(case), self._pipeline)

    def _row(self, case: Case, found: Array) -> tuple[Case, Record]:
        """Compare a prediction with the parent's."""
        image = self._cohort.image(case) if self._kind.DRAWS else BLANK
        reference = self._kind.reference(self._cohort, case, image)
        only = (base(self.metric),) if self._kind.MAPS else None
        parent = self._parent[case.id]
        return case, self._kind.compare(parent, found, reference, image, self._pipeline, metrics=only)

    def _prepared(self, case: Case) -> Prepared:
        if case.id in self._kept:
            return self._kept[case.id]
        prepared = prepare(self._cohort.image(case), self._pipeline)
        if prepared.array.nbytes <= self._room:
            self._room -= prepared.array.nbytes
            self._kept[case.id] = prepared
        return prepared

    def _track(self, title: str) -> Any:
        return self._progress.track(self._cases, title, len(self._cases))
