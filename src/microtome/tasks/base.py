"""What a task says of itself: references, predictions, scores, operating point, loss, and how it is reported."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from microtome.errors import DataError, OptionError
from microtome.medical.class_names import matched
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.medical.write import write_labels
from microtome.metrics import Metric, base, part
from microtome.types import Array, Case, Image

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
    LabelLoss = Callable[[Tensor, Tensor], Tensor]

Record = Mapping[str, Any]
"""What is kept of an evaluated case, as JSON holds it."""


@dataclass(frozen=True)
class Judgement:
    """What a verdict rests on.

    Attributes:
        metric: its name, such as `dice` or `dice/anterior`.
        margin: the acceptable loss; None takes the metric's default.
        seed: of the bootstrap.
        classes: the pipeline's class names, for metrics of single classes.
        threshold: the pipeline's, for what has no operating point.
    """

    metric: str
    margin: float | None = None
    seed: int = 0
    classes: tuple[str, ...] = ()
    threshold: float = 0.5


class Task(ABC):
    """One kind of prediction. Instances hold nothing: two of a class are the same.

    Attributes:
        NAME: as pipelines and results call it.
        MAPS: whether a prediction lies on the image's own grid, as a label map or an image does, and is not a few
            numbers for the whole image.
        METRICS: names of the metrics that a verdict may rest on, the usual one first.
        OWN: descriptions of metrics that are not in `microtome.metrics`.
        RULE: how absent structures count, for the report; empty where that cannot be.
        AGREEMENT: the two halves of "99 % … the … that the parent gives them"; `{voxels}` is pixels or voxels.
        HEADS: whether the network's outputs are looked at as a whole, see `heads`, and not as channels.
        TABLE: the file that predictions are rows of, where they are no maps.
        DRAWS: whether a report can draw predictions, see `drawn`.
        PICTURES: ending of the files that predictions for pictures are written to, where they are maps.
        MUCH: of the usual metric, more than what chance does on a few cases.
    """

    NAME: ClassVar[str]
    MAPS: ClassVar[bool]
    METRICS: ClassVar[tuple[str, ...]]
    OWN: ClassVar[Mapping[str, Metric]] = MappingProxyType({})
    RULE: ClassVar[str] = ""
    AGREEMENT: ClassVar[tuple[str, str]]
    HEADS: ClassVar[bool] = False
    TABLE: ClassVar[str] = "predictions.csv"
    DRAWS: ClassVar[bool] = False
    PICTURES: ClassVar[str] = "png"
    MUCH: ClassVar[float] = 0.2

    def metric(self, asked: str | None, pipeline: Pipeline | None = None) -> str:
        """Return the metric of the verdict; the usual one if None.

        Raises:
            OptionError: the task does not measure it, or not of the structure or class that is named, where the
                pipeline says which there are.
        """
        chosen = asked or self.METRICS[0]
        if base(chosen) not in self.METRICS:
            raise OptionError(
                f"--metric {chosen} does not fit {self.NAME}.", f"Choose one of {', '.join(self.METRICS)}."
            )
        parts = None if pipeline is None else self.parts(pipeline)
        if parts is not None and "/" in chosen and part(chosen) not in parts:
            names = ", ".join(f"{base(chosen)}/{name}" for name in parts)
            raise OptionError(
                f"--metric {chosen}: {self.NAME} here has no {base(chosen)} of {part(chosen)!r}.",
                f"Choose {base(chosen)}{f' or one of {names}' if names else ''}.",
            )
        return chosen

    def parts(self, pipeline: Pipeline) -> tuple[str, ...] | None:
        """Return the structures or classes that have metrics of their own; None where the pipeline does not say it."""
        return None

    def guessed(self, cohort: Cohort, outputs: int | None) -> dict[str, Any]:
        """Return the fields of a pipeline that a cohort tells of references and outputs, where nobody declares one.

        Args:
            cohort: with references for the task.
            outputs: channels of the network's output, if they are known.
        """
        classes = cohort.classes
        if len(cohort.unnamed) not in (0, len(classes)) and outputs != len(classes):  # no room for what has no name
            classes = tuple(dict.fromkeys(name for k, name in enumerate(classes) if k not in cohort.unnamed))
        sigmoid = outputs is not None and outputs != len(classes) and outputs in (1, len(classes) - self.MAPS)
        fields: dict[str, Any] = {"classes": classes, "activation": "sigmoid" if sigmoid else "softmax"}
        if cohort.regions is not None and outputs == len(cohort.regions):
            fields |= {"activation": "sigmoid", "regions": cohort.regions, "regions_order": cohort.regions_order}
        return fields

    def matched(self, cohort: Cohort, pipeline: Pipeline) -> Cohort:
        """Return the cohort with its references in the numbers and the order that the network has.

        Raises:
            LabelError: they are not the network's.
        """
        return matched(cohort, pipeline.classes, maps=self.MAPS)

    @abstractmethod
    def check(self, pipeline: Pipeline) -> None:
        """Refuse a pipeline that makes no sense for the task.

        Raises:
            OptionError: what is wrong with it.
        """

    @abstractmethod
    def outputs(self, pipeline: Pipeline) -> frozenset[int]:
        """Return the numbers of output channels that a network for the pipeline may have."""

    @abstractmethod
    def reference(self, cohort: Cohort, case: Case, image: Image) -> Any:
        """Read a case's reference; None where it has none.

        Raises:
            DataError: it cannot be read, or does not fit the image.
        """

    @abstractmethod
    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Run a network on prepared images, in order; the next ones are taken while earlier ones run.

        Yields:
            A prediction, or what was wrong with the network's output for an image; the others go on.
        """

    def label_map(self, prediction: Array, pipeline: Pipeline) -> Array:
        """Return a prediction as the one map that is written. Only where predictions are maps."""
        return prediction

    def write(self, prediction: Array, source: Image, path: Path, pipeline: Pipeline) -> None:
        """Write a prediction to a file of its own. Only where predictions are maps.

        Raises:
            OutputError: the file's kind does not fit, or cannot hold it.
        """
        write_labels(self.label_map(prediction, pipeline), source, path)

    def drawn(self, prediction: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Return what a report draws of a prediction: a label map (*S) of whole numbers, whose structures are outlined,
        or an image of real ones; None where that is nothing.
        """
        return None

    def drawn_reference(self, reference: Any, image: Image, pipeline: Pipeline) -> Array | None:
        """Return what a report draws of a reference, likewise."""
        return None if reference is None else self.drawn(reference, image, pipeline)

    @abstractmethod
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
        """Score both predictions of a case.

        Args:
            parent: the parent's prediction.
            compressed: the compressed network's.
            reference: what `reference` returned.
            image: the image; its voxels may be gone.
            pipeline: of both networks.
            metrics: of the case, where not all are wanted.

        Returns:
            A record, plain values.
        """

    @abstractmethod
    def summarise(
        self, rows: Sequence[tuple[Case, Record]], judgement: Judgement, point: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return the parts of `result.json` that follow from the records of all cases.

        Raises:
            DataError: no cases.
            LabelError: the metric was not measured in any.
            OptionError: metric or margin make no sense.
        """

    def tunes(self, classes: Sequence[str]) -> bool:
        """Return whether tuning patients have a use, also where no method trains."""
        return True

    def operating_cases(self, cohort: Cohort, pipeline: Pipeline) -> tuple[Sequence[Case], str]:
        """Return the cases that the operating point is fixed on, and what they are called; none where there is none."""
        return (), ""

    def resolved(self, cohort: Cohort, case: Case) -> Case:
        """Return a case with its reference as `operating_point` wants it, which needs no image."""
        return case

    def operating_point(self, predictions: Sequence[Any], cases: Sequence[Case], called: str) -> dict[str, Any] | None:
        """Fix the operating point on the parent's predictions (as `compare` records them).

        Raises:
            LabelError: it cannot be fixed on these cases.
        """
        return None

    def training_target(self, case: Case, labels: Array | None) -> Array | float | tuple[float, ...]:
        """Return what training compares a case's output with; `labels` is its label map on the network's grid."""
        raise NotImplementedError

    def unknown_target(self, size: Sequence[int], pipeline: Pipeline) -> Array:
        """Return what stands for the target of a case without a reference: `core.label_losses.UNKNOWN`, or NaN.

        Args:
            size: of the image, in the network's input.
            pipeline: of the network.
        """
        return np.full(tuple(size) if self.MAPS else (), -1, np.int64)

    def label_loss(self, pipeline: Pipeline) -> LabelLoss | None:
        """Return the loss of training on references: (output, target) → scalar, which leaves out what is unknown.

        Targets are a batch of what `training_target` and `unknown_target` return. None where training only imitates.
        """
        return None

    def loss(self, pipeline: Pipeline) -> Loss | None:
        """Return the loss of training: (student's output, teacher's output, target or None) → scalar.

        None leaves it to the method, which then distils the teacher's probabilities: no labels are needed.
        """
        return None

    @abstractmethod
    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Choose example cases from the `cases` of a result: the worst, a typical one, the best; each once."""

    def heads(self, outputs: Mapping[str, Array], size: Sequence[int], pipeline: Pipeline) -> None:
        """Refuse outputs, by name and of batch 1, that do not fit. Only with `HEADS`.

        Raises:
            DataError: what does not fit.
        """
        raise NotImplementedError

    def columns(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Return the columns of a table of predictions, where an image may have no row; empty otherwise."""
        return ()

    def rows(self, prediction: Array, pipeline: Pipeline, point: Mapping[str, Any] | None) -> list[dict[str, str]]:
        """Return a prediction as rows of a table, cells by column. Only where predictions are no maps."""
        return [self.row(prediction, pipeline, point)]

    def collected(
        self, rows: Sequence[Mapping[str, str]], names: Sequence[str], pipeline: Pipeline
    ) -> Mapping[str, Any]:
        """Return what is written beside the table when all is done: content of JSON, by name of the file.

        Args:
            rows: of the table, with the `name` of the image.
            names: of all images.
            pipeline: of the network.
        """
        return {}

    def row(self, prediction: Array, pipeline: Pipeline, point: Mapping[str, Any] | None) -> dict[str, str]:
        """Return a prediction as cells of a table, by column. Only where predictions are no maps."""
        raise NotImplementedError

    # What the report shows.

    @abstractmethod
    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the number that stands for a case of a result in plots and tables."""

    @abstractmethod
    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the metric or the word for that number."""

    @abstractmethod
    def worst_first(self, moved: float) -> float:
        """Return the key by which cases are listed, from how far their number moved."""

    @abstractmethod
    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw the cases: SVG and caption of each plot. `pairs` are the cases' numbers, parent and compressed."""


def predict_one(kind: Task, stream: Stream, prepared: Prepared, pipeline: Pipeline) -> Array:
    """Return the prediction for one prepared image.

    Raises:
        DataError: the network's output cannot be used.
    """
    with contextlib.closing(kind.predict(stream, [prepared], pipeline)) as each:
        found = next(each)
    if isinstance(found, DataError):
        raise found
    return found


def examples(chosen: Sequence[tuple[str, Mapping[str, Any], str]]) -> list[dict[str, Any]]:
    """Return entries of `result.json`'s `examples` from (kind, case, text), each case once."""
    seen: dict[str, dict[str, Any]] = {}
    for kind, case, text in chosen:
        seen.setdefault(case["case"], {"case": case["case"], "kind": kind, "text": text, "slice": None})
    return list(seen.values())
