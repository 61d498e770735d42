"""Detection: boxes with a class and a score, from the raw heads of a network that `pipeline.detector` describes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.clinical.detection import LEAST, BoxesCase, operating_points, summarise_boxes
from microtome.clinical.froc import hits_of
from microtome.errors import DataError, OptionError
from microtome.medical.class_names import match_classes
from microtome.medical.cohort import Cohort
from microtome.medical.decoding import decoded
from microtome.medical.detect import boxes_each
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.reference_boxes import boxes_on
from microtome.medical.stream import Stream
from microtome.metrics import BOXES, named
from microtome.report import words
from microtome.report.froc_plot import froc
from microtome.report.plots import pairs as scatter
from microtome.tasks.base import Judgement, Record, Task, examples
from microtome.tasks.box_files import coco, columns_of, rows_of
from microtome.tasks.whole import squared, thresholds_of, tuning_cases
from microtome.types import Array, Boxes, Case, Image

if TYPE_CHECKING:
    from microtome.tasks.base import Loss

SIDES = ("parent", "compressed")
WORST = 3  # example cases whose findings moved most
MOST_CURVES = 12  # classes whose curves are drawn


class Detection(Task):
    """Boxes, judged over the whole cohort, class by class."""

    NAME = "detection"
    MAPS = False
    DRAWS = True
    HEADS = True
    TABLE = "boxes.csv"
    METRICS = named(BOXES)
    RULE = (
        "An image without reference boxes counts with its false findings. A class without any reference box has no "
        "metric; the means leave it out. A finding is right if it overlaps a reference of its class that no better one "
        "has taken."
    )
    AGREEMENT = ("of all findings at the operating point have, to an overlap of a half,", "place")

    def guessed(self, cohort: Cohort, outputs: int | None) -> dict[str, Any]:
        """Refuse: nobody can guess anchors."""
        raise OptionError(
            "A detector needs a pipeline that says how its heads become boxes.",
            "Declare 'detector' with --pipeline: docs/tasks.md has examples.",
        )

    def matched(self, cohort: Cohort, pipeline: Pipeline) -> Cohort:
        """Give boxes the numbers of the network's classes."""
        if not cohort.classes:
            return cohort
        match = match_classes(cohort.classes, pipeline.classes, unnamed=cohort.unnamed, background=False)
        cases = tuple(
            case if case.boxes is None else replace(case, boxes=case.boxes.numbered(match.numbers))
            for case in cohort.cases
        )
        return replace(cohort, classes=pipeline.classes, unnamed=frozenset(), cases=cases)

    def check(self, pipeline: Pipeline) -> None:
        """Refuse a pipeline without a detector, and what is for maps only."""
        problem, detector = "", pipeline.detector
        if detector is None:
            problem = "'detector' must say how the network's heads become boxes"
        elif pipeline.mirror or pipeline.skip_empty or pipeline.slices or pipeline.regions or pipeline.cleanup:
            problem = "'mirror', 'skip_empty', 'slices', 'regions' and 'cleanup' are for label maps only"
        elif any(len(size) != pipeline.spatial_dims for level in detector.anchors for size in level):
            problem = f"'anchors' of the detector must have {pipeline.spatial_dims} sizes each"
        elif detector.weights is not None and len(detector.weights) != 2 * pipeline.spatial_dims:
            problem = f"'weights' of the detector must be {2 * pipeline.spatial_dims} numbers"
        elif detector.outputs and not set(detector.outputs) <= {pipeline.output, *pipeline.keep}:
            problem = f"'output' and 'keep' must name the outputs of the detector, {', '.join(detector.outputs)}"
        if problem:
            raise OptionError(f"Pipeline: {problem}.", "Correct pipeline.json.")

    def parts(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the classes."""
        return pipeline.classes

    def outputs(self, pipeline: Pipeline) -> frozenset[int]:
        """None that counts: heads are looked at as a whole."""
        return frozenset({0})

    def heads(self, outputs: Mapping[str, Array], size: Sequence[int], pipeline: Pipeline) -> None:
        """Refuse heads that the pipeline does not describe.

        Raises:
            DataError: what does not fit.
        """
        decoded(outputs, size, pipeline)

    def reference(self, cohort: Cohort, case: Case, image: Image) -> Array | None:
        """Return reference boxes (m, 1 + 2·d): class, box in voxels of the image."""
        return None if case.boxes is None else boxes_on(case.boxes, image, str(case.image[0]))

    def resolved(self, cohort: Cohort, case: Case) -> Case:
        """Return the case with its boxes in voxels of its image."""
        if case.boxes is None or case.boxes.frame == "voxel":
            return case
        rows = boxes_on(case.boxes, cohort.image(case), str(case.image[0]))
        corners = tuple(tuple(float(value) for value in row[1:]) for row in rows)
        return replace(case, boxes=Boxes(case.boxes.labels, corners))

    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Yield boxes (n, 2 + 2·d), float64: class, score, box in voxels of the image, by falling score."""
        return boxes_each(stream, images, pipeline)

    def drawn(self, prediction: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Draw the findings with at least the pipeline's `threshold`."""
        found = np.asarray(prediction)
        return _filled(np.delete(found[found[:, 1] >= pipeline.threshold], 1, axis=1), image)

    def drawn_reference(self, reference: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Draw the reference boxes."""
        return None if reference is None else _filled(reference, image)

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
        """Keep what both networks found, and the reference: the metrics need all cases together."""
        return {
            "parent": parent.tolist(),
            "compressed": compressed.tolist(),
            "reference": None if reference is None else reference.tolist(),
            "axes": len(image.spatial),
        }

    def summarise(
        self, rows: Sequence[tuple[Case, Record]], judgement: Judgement, point: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return the metrics of each class, their means, differences and the verdict."""
        cases = [
            BoxesCase(
                case.id,
                case.patient,
                _table(record["parent"], 2 + 2 * record["axes"]),
                _table(record["compressed"], 2 + 2 * record["axes"]),
                None if record["reference"] is None else _table(record["reference"], 1 + 2 * record["axes"]),
                subgroups=case.subgroups,
            )
            for case, record in rows
        ]
        parts = summarise_boxes(
            cases,
            judgement.classes,
            thresholds=thresholds_of(point, len(judgement.classes), judgement.threshold),
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
        """Fix the score of each class at which F1 is largest; None where the cases do not tell of it."""
        known = [(p, case.boxes) for p, case in zip(predictions, cases, strict=True) if case.boxes is not None]
        axes = next((len(row) - 2 for prediction, _ in known for row in prediction), 0)
        if not axes:
            return None
        found = [_table(prediction, 2 + axes) for prediction, _ in known]
        wanted = [
            _table([(k, *box) for k, box in zip(boxes.labels, boxes.corners, strict=True)], 1 + axes)
            for _, boxes in known
        ]
        top = int(max([-1.0, *(row[0] for table in (*found, *wanted) for row in table)])) + 1
        return {
            "thresholds": operating_points(found, wanted, top),
            "rule": "F1",
            "fixed_on": f"{len(known)} {called} cases, parent",
        }

    def training_target(self, case: Case, labels: Array | None) -> Array | float | tuple[float, ...]:
        """Refuse: training imitates the parent."""
        raise OptionError(f"{self.NAME} trains on what the parent gives, not on references.", "Train without labels.")

    def loss(self, pipeline: Pipeline) -> Loss | None:
        """Return the squared distance from the teacher's head: places are no probabilities."""
        return squared

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Choose the cases whose findings changed most, a typical one and the one that changed least."""
        ordered = sorted(rows, key=lambda row: (float(row["agreement"]), -len(row.get("label") or ())))
        chosen = [("worst", row) for row in ordered[:WORST]]
        chosen += [("typical", ordered[len(ordered) // 2]), ("best", ordered[-1])]
        return examples(
            [(kind, row, f"{row['agreement']:.0%} of the findings as by the parent") for kind, row in chosen]
        )

    def columns(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the columns of the table of boxes."""
        return columns_of(pipeline)

    def rows(self, prediction: Array, pipeline: Pipeline, point: Mapping[str, Any] | None) -> list[dict[str, str]]:
        """Return a row per box: class, score, whether it is above the operating point, and the box."""
        return rows_of(prediction, pipeline, thresholds_of(point, len(pipeline.classes), pipeline.threshold))

    def collected(
        self, rows: Sequence[Mapping[str, str]], names: Sequence[str], pipeline: Pipeline
    ) -> Mapping[str, Any]:
        """Return the same boxes as COCO has them."""
        return {"boxes.json": coco(rows, names, pipeline)}

    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the highest score of a case."""
        boxes = words.mapping(case.get(side)).get("boxes")
        return max((row[1] for row in boxes), default=0.0) if isinstance(boxes, list) else None

    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the words for it."""
        return "highest score"

    def worst_first(self, moved: float) -> float:
        """List those that moved most first."""
        return -abs(moved)

    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw the FROC curve of each class, and the highest score of each case."""
        drawn = []
        cases = [case for case in result["cases"] if isinstance(case.get("label"), list)]
        width = next((len(row) for case in cases for row in case["label"]), 0)
        for k, name in enumerate(result["classes"][:MOST_CURVES] if width else ()):
            wanted = [_table(case["label"], width) for case in cases]
            curves = []
            for side in SIDES:
                found = [_table(words.mapping(case.get(side)).get("boxes") or [], width + 1) for case in cases]
                curves.append(hits_of(found, wanted, k, LEAST).curve())
            if any((one[:, 0] == k).any() for one in wanted):
                svg = froc(dict(zip(SIDES, curves, strict=True)), name=f"froc{k}")
                caption = f"{words.text(name)}: share of references found over false findings per image (FROC)."
                drawn.append({"svg": svg, "caption": caption})
        parent, compressed = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
        svg = scatter(parent, compressed, name="cases", what="highest score")
        return [*drawn, {"svg": svg, "caption": "Highest score of every case. On the dashed line nothing changed."}]


def _table(rows: Sequence[Any], width: int) -> Array:
    return np.array(rows, np.float64).reshape(-1, width)


def _filled(boxes: Array, image: Image) -> Array:
    """A label map in which each box (class, corners) holds its class plus one."""
    labels, d = np.zeros(image.spatial, np.uint8), len(image.spatial)
    for row in boxes:
        inside = tuple(
            slice(int(np.floor(low)), max(int(np.ceil(high)), int(np.floor(low)) + 1))
            for low, high in zip(row[1 : 1 + d], row[1 + d :], strict=True)
        )
        labels[inside] = int(row[0]) + 1
    return labels
