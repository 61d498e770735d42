"""Classification: probabilities of classes for every image."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.clinical.cases import CasePrediction
from microtome.clinical.classification import decide
from microtome.clinical.classification import operating_point as best_threshold
from microtome.clinical.summary import summarise_classification
from microtome.errors import DataError, LabelError, OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.infer import probabilities
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.metrics import CLASSES, named
from microtome.report import drawing, plots, words
from microtome.tasks.base import Judgement, Record, examples
from microtome.tasks.whole import WholeImageTask, outputs_each, tuning_cases
from microtome.types import Array, Case, Image

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.tasks.base import LabelLoss

WORST = 3  # example cases whose score moved most


class Classification(WholeImageTask):
    """Class probabilities, judged over the whole cohort."""

    NAME = "classification"
    MAPS = False
    METRICS = named(CLASSES)
    AGREEMENT = ("of all cases get", "decision")

    def check(self, pipeline: Pipeline) -> None:
        """Refuse windows, and less than two classes."""
        problem = ""
        if len(pipeline.classes) < 2:
            problem = f"'classes' must hold two or more different names, not {pipeline.classes}"
        elif pipeline.patch is not None:
            problem = "'patch' is for segmentation only"
        elif pipeline.mirror or pipeline.skip_empty:
            problem = "'mirror' and 'skip_empty' are for segmentation only"
        if problem:
            raise OptionError(f"Pipeline: {problem}.", "Correct pipeline.json.")

    def parts(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the classes, where there are more than two: of two, each is what the other is not."""
        return pipeline.classes if len(pipeline.classes) > 2 else ()

    def outputs(self, pipeline: Pipeline) -> frozenset[int]:
        """One per class; a single one for two classes."""
        classes = len(pipeline.classes)
        fewer = {classes - 1} if pipeline.activation == "sigmoid" else set()
        return frozenset({classes} | fewer | ({1} if classes == 2 else set()))

    def reference(self, cohort: Cohort, case: Case, image: Image) -> int | None:
        """Return the class number."""
        return None if case.number is None else int(case.number)

    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Yield class probabilities, float64 (classes,)."""
        return outputs_each(stream, images, pipeline, lambda output: probabilities(output, pipeline)[0])

    def summarise(
        self, rows: Sequence[tuple[Case, Record]], judgement: Judgement, point: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return the metrics of the cohort at the operating point, differences and the verdict."""
        cases = [
            CasePrediction(
                case.id,
                case.patient,
                record["parent"],
                record["compressed"],
                label=None if case.number is None else int(case.number),
                subgroups=case.subgroups,
            )
            for case, record in rows
        ]
        parts = summarise_classification(
            cases,
            threshold=point["threshold"] if point else None,
            metric=judgement.metric,
            margin=judgement.margin,
            seed=judgement.seed,
            own=self.OWN,
            classes=judgement.classes,
        )
        return {**parts, "operating_point": point}

    def tunes(self, classes: Sequence[str]) -> bool:
        """Only tests between two classes have an operating point."""
        return len(classes) <= 2

    def operating_cases(self, cohort: Cohort, pipeline: Pipeline) -> tuple[Sequence[Case], str]:
        """Take the tuning cases of a test between two classes, or train cases if there are none."""
        return ((), "") if len(pipeline.classes) > 2 else tuning_cases(cohort)

    def operating_point(self, predictions: Sequence[Any], cases: Sequence[Case], called: str) -> dict[str, Any] | None:
        """Fix the decision threshold by Youden's rule."""
        labelled = [
            (p, int(case.number)) for p, case in zip(predictions, cases, strict=True) if case.number is not None
        ]
        labels = np.array([label for _, label in labelled])
        if len(set(labels.tolist())) < 2:
            raise LabelError(
                f"the {len(labelled)} {called} cases are of one class only: no operating point can be fixed on them.",
                "Give a larger share with --tuning, or a cohort in which both classes occur.",
            )
        scores = np.array([prediction[-1] for prediction, _ in labelled])
        return {
            "threshold": best_threshold(scores, labels),
            "rule": "youden",
            "fixed_on": f"{len(labelled)} {called} cases, parent",
        }

    def training_target(self, case: Case, labels: Array | None) -> Array | float | tuple[float, ...]:
        """Return the class number."""
        assert case.number is not None
        return case.number

    def label_loss(self, pipeline: Pipeline) -> LabelLoss | None:
        """Return the cross-entropy; of classes that are scored apart, the binary one."""

        def lost(output: Tensor, target: Tensor) -> Tensor:
            from microtome.core import label_losses

            apart = pipeline.activation == "sigmoid" or output.shape[1] == 1
            if pipeline.activation == "none":
                output = label_losses.logits(output, apart=apart)
            if not apart:
                return label_losses.class_loss(output, target)
            return label_losses.classes_apart_loss(output, target, len(pipeline.classes))

        return lost

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Choose the cases whose score moved most, a typical one and the one that moved least."""
        places = [(r, _shown(r)) for r in rows]
        pairs = [(r, float(r["parent"]["score"][k]), float(r["compressed"]["score"][k])) for r, k in places]
        moved = sorted(pairs, key=lambda pair: -abs(pair[2] - pair[1]))
        chosen = [("worst", pair) for pair in moved[:WORST]]
        chosen += [("typical", moved[len(moved) // 2]), ("best", moved[-1])]
        return examples([(kind, r, f"score {before:.3f} → {after:.3f}") for kind, (r, before, after) in chosen])

    def row(self, prediction: Array, pipeline: Pipeline, point: Mapping[str, Any] | None) -> dict[str, str]:
        """Return the decision at the operating point, and the probability of each class."""
        decision = int(decide(prediction[None], threshold=None if point is None else point["threshold"])[0])
        columns = {f"probability {n}": f"{value:.9g}" for n, value in zip(pipeline.classes, prediction, strict=True)}
        return {"decision": pipeline.classes[decision], **columns}

    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the case's score: that of class 1 for two classes, else that of its true class."""
        score = words.mapping(case.get(side)).get("score")
        if not isinstance(score, list):
            return words.number(score)
        place = words.number(case.get("label")) if len(score) > 2 else len(score) - 1
        return words.number(score[int(place)]) if place is not None and 0 <= place < len(score) else None

    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the word for it."""
        return "score"

    def worst_first(self, moved: float) -> float:
        """List those that moved most first."""
        return -abs(moved)

    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw ROC curves for two classes, and the scores of parent against compressed."""
        parent, compressed = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
        threshold = words.number(result["operating_point"].get("threshold"))
        binary = _is_binary(result)
        what = "score" if binary else "score of the true class"
        scatter = plots.pairs(parent, compressed, name="cases", what=what, threshold=threshold if binary else None)
        caption = "Score of every case. On the dashed line nothing changed."
        if binary and threshold is not None:
            caption += " A point in the upper left or lower right field of the threshold lines got another decision."
        roc = _roc(result, parent, compressed) if binary else ""
        return [
            {"svg": roc, "caption": "ROC curves and operating points."},
            {"svg": scatter, "caption": caption},
        ]


def _shown(row: Mapping[str, Any]) -> int:
    """The class whose score stands for a case: class 1 of two; of more the true one, or what the parent says."""
    score, label = row["parent"]["score"], row.get("label")
    if len(score) <= 2:
        return len(score) - 1
    return int(np.argmax(score)) if label is None else int(label)


def _roc(result: Mapping[str, Any], parent: Array, compressed: Array) -> str:
    labels = np.array([words.number(case.get("label")) for case in result["cases"]], dtype=float)
    keep = np.isfinite(labels) & np.isfinite(parent) & np.isfinite(compressed)
    if not keep.any():
        return ""
    sides = (("parent", parent, drawing.PARENT), ("compressed", compressed, drawing.COMPRESSED))
    curves = [
        plots.RocCurve(side, scores[keep], color, _operating_place(words.mapping(result[side].get("metrics"))))
        for side, scores, color in sides
    ]
    return plots.roc(curves, labels[keep] > 0, name="roc")


def _operating_place(found: Mapping[str, Any]) -> tuple[float, float] | None:
    sensitivity = words.interval(found.get("sensitivity")).value
    specificity = words.interval(found.get("specificity")).value
    return None if sensitivity is None or specificity is None else (1 - specificity, sensitivity)


def _is_binary(result: Mapping[str, Any]) -> bool:
    """Two classes, or one score per case."""
    scores = (words.mapping(case.get("parent")).get("score") for case in result["cases"])
    lengths = {len(score) if isinstance(score, list) else 1 for score in scores if score is not None}
    return bool(lengths) and max(lengths) <= 2
