"""One parent, many candidates: what each would lose on the same cases, as the final evaluation would say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microtome.clinical.cases import CasePrediction, CaseScores
from microtome.clinical.noninferiority import chosen_margin
from microtome.clinical.overlap import agreement, count_labels, dice_from_counts
from microtome.clinical.summary import summarise_classification, summarise_segmentation
from microtome.errors import SplitError
from microtome.evidence.comparison import DEFAULT_METRIC
from microtome.medical.cohort import Cohort
from microtome.medical.infer import finish_segmentation, probabilities, scores
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, prepare
from microtome.medical.sliding import Predict
from microtome.progress import Progress, Silent
from microtome.types import Array, Case, Interval

# Prepared images that are kept between candidates, in bytes; what is beyond is read anew each time.
KEPT = 1 << 30


@dataclass(frozen=True)
class Judged:
    """What a candidate would lose.

    Attributes:
        value: the metric of the candidate.
        parent: of the parent, on the same cases.
        difference: candidate − parent, with its 95 % interval by patient.
        lower: the one-sided 95 % bound that the verdict rests on.
        non_inferior: True, False or None, as in the final verdict.
        worst: the worst subgroup's difference; the whole cohort's where there are none.
        agreement: mean share of voxels, or share of cases, with the parent's label.
    """

    value: float | None
    parent: float | None
    difference: Interval
    lower: float | None
    non_inferior: bool | None
    worst: float | None
    agreement: float


class Judge:
    """Runs candidates on a fixed set of cases; the parent's side is computed once.

    Only overlap is scored (Dice, AUROC): boundaries are for the final evaluation.
    """

    def __init__(
        self,
        parent: Predict,
        cohort: Cohort,
        cases: Sequence[Case],
        pipeline: Pipeline,
        *,
        margin: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Run the parent on the cases.

        Raises:
            SplitError: there are no cases, or none with a reference.
        """
        self.metric = DEFAULT_METRIC[pipeline.task]
        self.margin = chosen_margin(self.metric, margin)
        self._cohort, self._pipeline, self._margin, self._seed = cohort, pipeline, margin, seed
        self._cases, self._progress = tuple(cases), progress or Silent()
        self._kept: dict[str, Prepared] = {}
        self._room = KEPT
        if not any(case.label is not None or case.mask is not None for case in self._cases):
            raise SplitError(
                f"none of the {len(self._cases)} cases to tune on has a reference.",
                "Give a share of labelled patients with --tuning.",
            )
        self._parent = {case.id: self._predict(parent, case) for case in self._track("parent")}

    def __call__(self, candidate: Predict, name: str = "judge") -> Judged:
        """Run a candidate, float32 (N, C, *S) → float32 (N, K, *S) or (N, K), and compare it with the parent."""
        judged = self._segmented if self._pipeline.task == "segmentation" else self._classified
        parts = judged(candidate, name)
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
            min(known, default=None),
            float(parts["agreement"]["value"]),
        )

    def _segmented(self, candidate: Predict, name: str) -> dict[str, Any]:
        rows = []
        for case in self._track(name):
            found, parent = self._predict(candidate, case), self._parent[case.id]
            reference = self._cohort.mask(case, self._cohort.image(case))
            if reference is None:
                continue
            ours, theirs = self._dice(found, reference), self._dice(parent, reference)
            same = agreement(parent, found)
            rows.append(CaseScores(case.id, case.patient, theirs, ours, same, subgroups=case.subgroups))
        return summarise_segmentation(rows, metric=self.metric, margin=self._margin, seed=self._seed)

    def _classified(self, candidate: Predict, name: str) -> dict[str, Any]:
        rows = [
            CasePrediction(
                case.id,
                case.patient,
                self._parent[case.id].tolist(),
                self._predict(candidate, case).tolist(),
                label=case.label,
                subgroups=case.subgroups,
            )
            for case in self._track(name)
        ]
        return summarise_classification(rows, threshold=None, metric=self.metric, margin=self._margin, seed=self._seed)

    def _predict(self, predict: Predict, case: Case) -> Array:
        """Return a label map on the case's own grid, or class probabilities."""
        prepared = self._prepared(case)
        output = scores(predict, prepared, self._pipeline)
        if self._pipeline.task == "segmentation":
            return finish_segmentation(output, prepared, self._pipeline)
        result: Array = probabilities(output[None], self._pipeline)[0]
        return result

    def _prepared(self, case: Case) -> Prepared:
        if case.id in self._kept:
            return self._kept[case.id]
        prepared = prepare(self._cohort.image(case), self._pipeline)
        if prepared.array.nbytes <= self._room:
            self._room -= prepared.array.nbytes
            self._kept[case.id] = prepared
        return prepared

    def _dice(self, labels: Array, reference: Array) -> dict[str, dict[str, float]]:
        structures = {i: name for i, name in enumerate(self._pipeline.classes) if i > 0}
        values = dice_from_counts(count_labels(labels, reference, labels=list(structures)))
        return {"dice": {name: float(value) for name, value in zip(structures.values(), values, strict=True)}}

    def _track(self, title: str) -> Any:
        return self._progress.track(self._cases, title, len(self._cases))
