"""Image to image: denoising, synthesis, fields of displacements; an image of the same grid comes out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.clinical.cases import CaseScores
from microtome.clinical.pixels import of_one_value, same_values, score_images, summarise_images
from microtome.errors import DataError, OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.maps import map_each, read_target
from microtome.medical.outputs import check_units
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.medical.write_image import write_image
from microtome.metrics import IMAGES, named
from microtome.tasks.base import Judgement, Record
from microtome.tasks.scored import ScoredTask
from microtome.tasks.whole import squared
from microtome.types import Array, Case, Image

if TYPE_CHECKING:
    from microtome.tasks.base import Loss


class ImageToImage(ScoredTask):
    """Images on the grid of the image that was given, judged voxel by voxel."""

    NAME = "image-to-image"
    MAPS = True
    DRAWS = True
    PICTURES = "tif"
    METRICS = named(IMAGES)
    RULE = (
        "The range of values is the reference's own. PSNR and SSIM of a reference of one value are undefined: the case "
        "is left out of their means. An image that equals its reference has 100 dB."
    )
    AGREEMENT = ("of all {voxels} have, to 5 % of the range,", "value")
    DECIMALS = 2
    ALIKE = "as by the parent"
    MUCH = 3.0

    def guessed(self, cohort: Cohort, outputs: int | None) -> dict[str, Any]:
        """Name the channels by their numbers, and take outputs for what they are."""
        count = outputs or 1
        names = ("image",) if count == 1 else tuple(f"channel {k + 1}" for k in range(count))
        return {"classes": names, "activation": "none"}

    def matched(self, cohort: Cohort, pipeline: Pipeline) -> Cohort:
        """Leave the cohort as it is: its references have no names."""
        return cohort

    def check(self, pipeline: Pipeline) -> None:
        """Refuse what is for label maps only."""
        labels = {"activation": "none", "skip_empty": False, "regions": None, "cleanup": (), "decide": "image"}
        for name, only in labels.items():
            if getattr(pipeline, name) != only:
                raise OptionError(
                    f"Pipeline: '{name}' is for label maps; with {self.NAME} it must be {only!r}, not "
                    f"{getattr(pipeline, name)!r}.",
                    "Correct pipeline.json.",
                )
        partly = {"zscore_nonzero", "zscore_masked"} & set(pipeline.kinds)
        if pipeline.undo_normalize and partly:
            raise OptionError(
                f"Pipeline: 'undo_normalize' cannot undo '{partly.pop()}', which leaves voxels as they are.",
                "Give 'output_scale' and 'output_offset' instead.",
            )
        if pipeline.undo_normalize and len(set(pipeline.kinds)) > 1 and len(pipeline.classes) != pipeline.channels:
            raise OptionError(
                "Pipeline: 'undo_normalize' needs as many output channels as the image has, or one 'normalize'.",
                "Correct pipeline.json.",
            )
        check_units(pipeline, pipeline.classes)

    def parts(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the channels."""
        return pipeline.classes

    def outputs(self, pipeline: Pipeline) -> frozenset[int]:
        """One per channel of the image to be made."""
        return frozenset({len(pipeline.classes)})

    def reference(self, cohort: Cohort, case: Case, image: Image) -> Array | None:
        """Read the image that ought to come out."""
        return read_target(cohort, case, image)

    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Yield images float32 (C, *S) on the images' own grids, in the references' unit."""
        return map_each(stream, images, pipeline)

    def write(self, prediction: Array, source: Image, path: Path, pipeline: Pipeline) -> None:
        """Write the image, float32."""
        write_image(prediction, source, path)

    def drawn(self, prediction: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Draw the first channel."""
        return np.asarray(prediction[0], np.float32)

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
        """Score both images against the reference, and say how alike they are."""
        record: dict[str, Any] = {"agreement": same_values(parent, compressed), "parent": {}, "compressed": {}}
        if reference is None:
            return record
        names = pipeline.classes
        for side, made in (("parent", parent), ("compressed", compressed)):
            record[side] = score_images(made, reference, names, metrics=metrics)
        empty = [name for name, one in zip(names, reference, strict=True) if one.min() == one.max()]
        return {**record, "empty": empty, "trivial": of_one_value(reference, names)}

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
                empty=tuple(record.get("empty", ())),
                subgroups=case.subgroups,
                trivial=record.get("trivial", {}),
            )
            for case, record in rows
        ]
        return summarise_images(
            cases, metric=judgement.metric, margin=judgement.margin, seed=judgement.seed, own=self.OWN
        )

    def tunes(self, classes: Sequence[str]) -> bool:
        """There is no operating point."""
        return False

    def training_target(self, case: Case, labels: Array | None) -> Array | float | tuple[float, ...]:
        """Refuse: training imitates the parent."""
        raise OptionError(f"{self.NAME} trains on what the parent makes, not on references.", "Train without labels.")

    def loss(self, pipeline: Pipeline) -> Loss | None:
        """Return the squared distance from the teacher: values are no probabilities."""
        return squared
