"""Segmentation: a label for every voxel, on the image's own grid."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.clinical.cases import CaseScores
from microtome.clinical.chance import whole_image
from microtome.clinical.overlap import agreement, agreement_of_masks, found_by_both
from microtome.clinical.segmentation import empty_structures, score_segmentation
from microtome.clinical.summary import summarise_segmentation
from microtome.errors import DataError, OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.regions import label_map, masks_of_labels
from microtome.medical.stream import Stream, segment_each
from microtome.metrics import STRUCTURE, named
from microtome.tasks.base import Judgement, Record
from microtome.tasks.scored import ScoredTask
from microtome.types import Array, Case, Image

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.tasks.base import LabelLoss

# How far apart two borders may lie and still count as the same (NSD): a voxel of usual size; two pixels of a picture.
TOLERANCE_MM = 1.0
TOLERANCE_PIXELS = 2.0


class Segmentation(ScoredTask):
    """Label maps, judged structure by structure."""

    NAME = "segmentation"
    MAPS = True
    DRAWS = True
    METRICS = named(STRUCTURE)
    RULE = (
        "Empty masks: where reference and prediction are both empty, a structure's metric is undefined; the case is "
        "left out of that mean. Where only one of them is empty, Dice and NSD are 0 and HD95 is the diagonal of the "
        "image."
    )
    AGREEMENT = ("of all {voxels} carry", "label")
    DECIMALS = 3
    ALIKE = "labelled as by the parent"
    MUCH = 0.05  # a map is a mean over thousands of voxels

    def check(self, pipeline: Pipeline) -> None:
        """Refuse a pipeline without a structure beside the background."""
        if len(pipeline.classes) < 2:
            raise OptionError(
                f"Pipeline: 'classes' must hold the background and at least one structure, not {pipeline.classes}.",
                "Correct pipeline.json.",
            )

    def parts(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the structures."""
        return tuple(pipeline.regions) if pipeline.regions is not None else pipeline.classes[1:]

    def outputs(self, pipeline: Pipeline) -> frozenset[int]:
        """One channel per class, or with sigmoid one per structure; one per region that is declared."""
        if pipeline.regions is not None:
            return frozenset({len(pipeline.regions)})
        classes = len(pipeline.classes)
        return frozenset({classes, classes - 1} if pipeline.activation == "sigmoid" else {classes})

    def reference(self, cohort: Cohort, case: Case, image: Image) -> Array | None:
        """Read the reference mask on the image's grid."""
        return cohort.mask(case, image)

    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Yield label maps on the images' own grids, streamed plane by plane; of regions, a mask of each."""
        return segment_each(stream, images, pipeline)

    def label_map(self, prediction: Array, pipeline: Pipeline) -> Array:
        """Return the label map; of regions that overlap, in the pipeline's order, of which later ones win."""
        return prediction if pipeline.regions is None else label_map(prediction, pipeline)

    def drawn(self, prediction: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Draw the label map."""
        return self.label_map(prediction, pipeline)

    def drawn_reference(self, reference: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Draw the reference, which is a label map also where predictions are regions."""
        return None if reference is None else np.asarray(reference)

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
        """Score both predictions against the reference, and say how alike they are."""
        alike = agreement(parent, compressed) if pipeline.regions is None else agreement_of_masks(parent, compressed)
        record: dict[str, Any] = {"agreement": alike, "parent": {}, "compressed": {}, "empty": []}
        if reference is None:
            return record
        tolerance = TOLERANCE_PIXELS if image.affine is None else TOLERANCE_MM
        how: dict[str, Any] = {"spacing": image.spacing, "tolerance": tolerance, "metrics": metrics}
        record |= {"trivial": {}, "found": (0, 0)}
        for ours, theirs, wanted, labels in _views(parent, compressed, reference, pipeline):
            for side, prediction in (("parent", ours), ("compressed", theirs)):
                for metric, values in score_segmentation(prediction, wanted, labels=labels, **how).items():
                    record[side].setdefault(metric, {}).update(values)
            record["empty"] += empty_structures(wanted, labels=labels)
            record["trivial"] |= whole_image(wanted, labels=labels)
            both, each = found_by_both(ours, theirs, labels=list(labels))
            record["found"] = (record["found"][0] + both, record["found"][1] + each)
        return record

    def summarise(
        self, rows: Sequence[tuple[Case, Record]], judgement: Judgement, point: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return means over cases, differences and the verdict."""
        cases = [
            CaseScores(
                case.id,
                case.patient,
                record["parent"],
                record["compressed"],
                agreement=record["agreement"],
                empty=tuple(record["empty"]),
                subgroups=case.subgroups,
                trivial=record.get("trivial", {}),
                found=tuple(record.get("found", (0, 0))),
            )
            for case, record in rows
        ]
        return summarise_segmentation(
            cases, metric=judgement.metric, margin=judgement.margin, seed=judgement.seed, own=self.OWN
        )

    def training_target(self, case: Case, labels: Array | None) -> Array | float | tuple[float, ...]:
        """Return the label map."""
        assert labels is not None
        return labels

    def label_loss(self, pipeline: Pipeline) -> LabelLoss | None:
        """Return cross-entropy and Dice; of channels that are probabilities of their own, each for itself."""

        def lost(output: Tensor, target: Tensor) -> Tensor:
            from microtome.core import label_losses

            channels = output.shape[1]
            apart = pipeline.activation == "sigmoid" or channels == 1 or pipeline.regions is not None
            if pipeline.activation == "none":
                output = label_losses.logits(output, apart=apart)
            if not apart:
                return label_losses.map_loss(output, target)
            regions = label_losses.structures(len(pipeline.classes), channels, pipeline.regions)
            return label_losses.region_loss(output, target, regions)

        return lost


def _views(
    parent: Array, compressed: Array, reference: Array, pipeline: Pipeline
) -> Iterator[tuple[Array, Array, Array, dict[int, str]]]:
    """Both predictions and the reference as label maps, with the names of the labels; of regions, one by one."""
    if pipeline.regions is None:
        yield parent, compressed, reference, {i: name for i, name in enumerate(pipeline.classes) if i > 0}
        return
    for channel, (name, labels) in enumerate(pipeline.regions.items()):
        wanted = masks_of_labels(reference, {name: labels})[0]
        yield parent[channel], compressed[channel], wanted, {1: name}
