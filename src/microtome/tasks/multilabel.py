"""Multi-label classification: several findings of one image, each there or not, whatever the others are."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.clinical.findings import FindingsCase, operating_points, summarise_findings
from microtome.errors import DataError, OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.column_names import columns_matched
from microtome.medical.infer import probabilities
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.metrics import CLASSES, named
from microtome.report import drawing, plots, words
from microtome.tasks.base import Judgement, Record, examples
from microtome.tasks.whole import NamedAnswersTask, outputs_each, thresholds_of, tuning_cases, whole_images
from microtome.types import Array, Case

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.tasks.base import LabelLoss

SIDES = ("parent", "compressed")
WORST = 3  # example cases of which a score moved most
MOST_CURVES = 12  # findings whose ROC curves are drawn, those that lost most first


class MultiLabel(NamedAnswersTask):
    """A probability for each finding, judged over the whole cohort, finding by finding."""

    NAME = "multi-label"
    MAPS = False
    METRICS = named(CLASSES)
    RULE = (
        "Missing answers: a case has no part in the metrics of a finding that its reference does not know. A finding "
        "that is in none of the cases, or in all of them, has no AUROC; the means leave it out."
    )
    AGREEMENT = ("of all findings get", "decision")

    def guessed(self, cohort: Cohort, outputs: int | None) -> dict[str, Any]:
        """Take the cohort's findings, and each output for a score of its own."""
        return {"classes": cohort.classes, "activation": "sigmoid"}

    def matched(self, cohort: Cohort, pipeline: Pipeline) -> Cohort:
        """Put the cohort's columns in the network's order."""
        return columns_matched(cohort, pipeline.classes, "finding")

    def check(self, pipeline: Pipeline) -> None:
        """Refuse windows, and a softmax, whose classes exclude one another."""
        problem = whole_images(pipeline)
        if pipeline.activation == "softmax":
            problem = "'activation' must be 'sigmoid', or 'none' for probabilities: findings do not exclude one another"
        if problem:
            raise OptionError(f"Pipeline: {problem}.", "Correct pipeline.json.")

    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Yield the probabilities of the findings, float64 (findings,)."""
        return outputs_each(stream, images, pipeline, lambda output: _bounded(probabilities(output, pipeline)[0]))

    def summarise(
        self, rows: Sequence[tuple[Case, Record]], judgement: Judgement, point: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return the metrics of each finding at its operating point, their means, differences and the verdict."""
        names = judgement.classes or tuple(f"finding {k + 1}" for k in range(len(rows[0][1]["parent"]) if rows else 0))
        cases = [
            FindingsCase(
                case.id,
                case.patient,
                record["parent"],
                record["compressed"],
                label=case.label if isinstance(case.label, tuple) else None,
                subgroups=case.subgroups,
            )
            for case, record in rows
        ]
        parts = summarise_findings(
            cases,
            names,
            thresholds=thresholds_of(point, len(names), judgement.threshold),
            metric=judgement.metric,
            margin=judgement.margin,
            seed=judgement.seed,
            own=self.OWN,
        )
        return {**parts, "operating_point": point}

    def operating_cases(self, cohort: Cohort, pipeline: Pipeline) -> tuple[Sequence[Case], str]:
        """Take the tuning cases, or train cases if there are none."""
        return tuning_cases(cohort)

    def operating_point(self, predictions: Sequence[Any], cases: Sequence[Case], called: str) -> dict[str, Any] | None:
        """Fix a threshold for each finding by Youden's rule; None where the cases do not tell of it."""
        labelled = [
            (p, case.label) for p, case in zip(predictions, cases, strict=True) if isinstance(case.label, tuple)
        ]
        if not labelled:
            return None
        references = np.array([[np.nan if v is None else v for v in label] for _, label in labelled], float)
        scores = np.array([prediction for prediction, _ in labelled], float)
        places = [str(k) for k in range(scores.shape[1])]
        found = operating_points(scores, references, places)
        return {
            "thresholds": [found[place] for place in places],
            "rule": "youden",
            "fixed_on": f"{len(labelled)} {called} cases, parent",
        }

    def label_loss(self, pipeline: Pipeline) -> LabelLoss | None:
        """Return the binary cross-entropy of the findings that are known."""

        def lost(output: Tensor, target: Tensor) -> Tensor:
            from microtome.core import label_losses

            if pipeline.activation == "none":
                output = label_losses.logits(output, apart=True)
            return label_losses.answers_loss(output, target)

        return lost

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Choose the cases of which a score moved most, a typical one and the one that moved least."""
        moved = sorted(rows, key=lambda row: -_moved(row)[0])
        chosen = [("worst", row) for row in moved[:WORST]]
        chosen += [("typical", moved[len(moved) // 2]), ("best", moved[-1])]
        return examples([(kind, row, _told(row)) for kind, row in chosen])

    def row(self, prediction: Array, pipeline: Pipeline, point: Mapping[str, Any] | None) -> dict[str, str]:
        """Return for each finding the decision at its operating point, 1 or 0, and the probability."""
        limits = thresholds_of(point, len(pipeline.classes), pipeline.threshold)
        cells: dict[str, str] = {}
        for name, value, limit in zip(pipeline.classes, prediction, limits, strict=True):
            cells |= {f"decision {name}": str(int(value >= limit)), f"probability {name}": f"{value:.9g}"}
        return cells

    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the score of the finding whose score moved most."""
        score = words.mapping(case.get(side)).get("score")
        place = _moved(case)[1]
        return words.number(score[place]) if isinstance(score, list) and place < len(score) else None

    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the words for it."""
        return "score of the finding that moved most"

    def worst_first(self, moved: float) -> float:
        """List those that moved most first."""
        return -abs(moved)

    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw the ROC curves of each finding, and all scores of parent against compressed."""
        names = [words.text(name) for name in result["classes"]]
        tables = [_table(result["cases"], side, "score", len(names)) for side in ("parent", "compressed")]
        labels = np.array([_label(case, len(names)) for case in result["cases"]], float).reshape(-1, len(names))
        scatter = plots.pairs(tables[0].ravel(), tables[1].ravel(), name="cases", what="score")
        caption = "Score of every finding of every case. On the dashed line nothing changed."
        drawn = [{"svg": scatter, "caption": caption}]
        lost = {name: words.interval(result["difference"].get(f"auroc/{name}")).value for name in result["classes"]}
        order = sorted(range(len(names)), key=lambda k: lost[result["classes"][k]] or 0.0)
        for place, k in enumerate(order[:MOST_CURVES]):
            svg = _roc(result, [table[:, k] for table in tables], labels[:, k], place, str(result["classes"][k]))
            drawn.append({"svg": svg, "caption": f"ROC curves of {names[k]}, and its operating points."})
        return drawn


def _bounded(values: Array) -> Array:
    """Refuse what is no probability: infinity, or a value beyond 0 to 1 where the network has no activation.

    Raises:
        DataError: there is one.
    """
    if not np.isfinite(values).all() or values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise DataError(
            f"The network returned {values.min():g} to {values.max():g} where probabilities are wanted.",
            "Declare 'activation': 'sigmoid' if its outputs are logits.",
        )
    return values


def _moved(row: Mapping[str, Any]) -> tuple[float, int]:
    """How far the score of a case moved that moved most, and which it is."""
    before, after = (np.array(words.mapping(row.get(side)).get("score") or [0.0], float) for side in SIDES)
    change = np.abs(after - before)
    return float(change.max()), int(change.argmax())


def _told(row: Mapping[str, Any]) -> str:
    before, after = (row[side]["score"][_moved(row)[1]] for side in SIDES)
    return f"score {before:.3f} → {after:.3f}"


def _table(cases: Sequence[Mapping[str, Any]], side: str, key: str, count: int) -> Array:
    """What one network gave for all cases, (cases, count); NaN where a row is broken."""
    rows = [words.mapping(case.get(side)).get(key) for case in cases]
    kept = [row if isinstance(row, list) and len(row) == count else [None] * count for row in rows]
    return np.array([[np.nan if words.number(v) is None else v for v in row] for row in kept], float).reshape(-1, count)


def _label(case: Mapping[str, Any], count: int) -> list[float]:
    label = case.get("label")
    given = label if isinstance(label, list) and len(label) == count else [None] * count
    return [np.nan if found is None else found for found in map(words.number, given)]


def _roc(result: Mapping[str, Any], scores: Sequence[Array], labels: Array, place: int, finding: str) -> str:
    keep = np.isfinite(labels) & np.isfinite(scores[0]) & np.isfinite(scores[1])
    if not keep.any():
        return ""
    curves = []
    for side, values, color in zip(("parent", "compressed"), scores, (drawing.PARENT, drawing.COMPRESSED), strict=True):
        found = words.mapping(result[side].get("metrics"))
        hits, left = (words.interval(found.get(f"{name}/{finding}")).value for name in ("sensitivity", "specificity"))
        point = None if hits is None or left is None else (1 - left, hits)
        curves.append(plots.RocCurve(side, values[keep], color, point))
    return plots.roc(curves, labels[keep] > 0, name=f"roc{place}")
