"""Regression: one number or several for an image, such as an age or the places of landmarks."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.clinical.numbers import NumbersCase, summarise_numbers
from microtome.errors import DataError, OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.column_names import columns_matched
from microtome.medical.outputs import check_units, numbers
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.metrics import NUMBERS, named
from microtome.report import words
from microtome.report.number_plots import bland_altman, over_reference
from microtome.tasks.base import Judgement, Record, examples
from microtome.tasks.whole import NamedAnswersTask, outputs_each, squared, whole_images
from microtome.types import Array, Case

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.tasks.base import LabelLoss, Loss

WORST = 3  # example cases whose error grew most
MOST_DRAWN = 6  # numbers that have plots of their own


class Regression(NamedAnswersTask):
    """Numbers for whole images, judged over the whole cohort by their errors."""

    NAME = "regression"
    MAPS = False
    METRICS = named(NUMBERS)
    RULE = (
        "Missing references: a case has no part in the metrics of a number that its reference does not give. Where all "
        "references of a number are the same, NMAE and concordance are undefined; the means leave it out."
    )
    AGREEMENT = ("of all numbers are, to a quarter of the references' standard deviation,", "value")
    MUCH = 0.3

    def guessed(self, cohort: Cohort, outputs: int | None) -> dict[str, Any]:
        """Take the cohort's names, and outputs for what they are."""
        return {"classes": cohort.classes, "activation": "none"}

    def matched(self, cohort: Cohort, pipeline: Pipeline) -> Cohort:
        """Put the cohort's columns in the network's order."""
        return columns_matched(cohort, pipeline.classes, "number")

    def check(self, pipeline: Pipeline) -> None:
        """Refuse windows and an activation."""
        problem = whole_images(pipeline)
        if pipeline.activation != "none":
            problem = "'activation' must be 'none': the outputs are the numbers themselves"
        if problem:
            raise OptionError(f"Pipeline: {problem}.", "Correct pipeline.json.")
        check_units(pipeline, pipeline.classes)

    def predict(
        self, stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
    ) -> Generator[Array | DataError, None, None]:
        """Yield the numbers in the unit of their references, float64 (numbers,)."""
        return outputs_each(stream, images, pipeline, lambda output: numbers(output, pipeline))

    def summarise(
        self, rows: Sequence[tuple[Case, Record]], judgement: Judgement, point: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return errors, differences and the verdict."""
        names = judgement.classes or tuple(f"value {k + 1}" for k in range(len(rows[0][1]["parent"]) if rows else 0))
        cases = [
            NumbersCase(
                case.id,
                case.patient,
                record["parent"],
                record["compressed"],
                label=case.label if isinstance(case.label, tuple) else None,
                subgroups=case.subgroups,
            )
            for case, record in rows
        ]
        return summarise_numbers(
            cases, names, metric=judgement.metric, margin=judgement.margin, seed=judgement.seed, own=self.OWN
        )

    def tunes(self, classes: Sequence[str]) -> bool:
        """There is no operating point."""
        return False

    def loss(self, pipeline: Pipeline) -> Loss | None:
        """Return the squared distance from the teacher: numbers are no probabilities."""
        return squared

    def label_loss(self, pipeline: Pipeline) -> LabelLoss | None:
        """Return the squared error of the numbers that are known, in the network's own unit."""

        def lost(output: Tensor, target: Tensor) -> Tensor:
            from microtome.core import label_losses

            scale, offset = (output.new_tensor(one) for one in (pipeline.output_scale, pipeline.output_offset))
            return label_losses.numbers_loss(output, (target - offset) / scale)

        return lost

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Choose the cases whose number moved most, a typical one and the one that moved least."""
        moved = sorted(rows, key=lambda row: -_moved(row))
        chosen = [("worst", row) for row in moved[:WORST]]
        chosen += [("typical", moved[len(moved) // 2]), ("best", moved[-1])]
        return examples([(kind, row, _told(row)) for kind, row in chosen])

    def row(self, prediction: Array, pipeline: Pipeline, point: Mapping[str, Any] | None) -> dict[str, str]:
        """Return each number."""
        return {f"value {n}": f"{value:.9g}" for n, value in zip(pipeline.classes, prediction, strict=True)}

    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the case's mean absolute error, or its mean number where there is no reference."""
        values = _numbers(words.mapping(case.get(side)).get("value"))
        references = _numbers(case.get("label"))
        if values is None:
            return None
        if references is None or references.shape != values.shape:
            return float(values.mean())
        errors = np.abs(values - references)
        return float(np.nanmean(errors)) if np.isfinite(errors).any() else None

    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the words for it."""
        return "mae"

    def worst_first(self, moved: float) -> float:
        """List those whose error grew most first."""
        return -moved

    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw both networks' numbers over the references, and their differences (Bland and Altman, Lancet 1986)."""
        drawn = []
        rows = [_row(case) for case in result["cases"]]
        for k, name in enumerate(result["classes"][:MOST_DRAWN]):
            parent, compressed, reference = (np.array([_at(row[side], k) for row in rows], float) for side in range(3))
            what = words.text(name)
            drawn += [
                {
                    "svg": over_reference(parent, compressed, reference, name=f"reference{k}", what=what),
                    "caption": f"{what}: what both networks give over the reference. The dashed line is a perfect one.",
                },
                {
                    "svg": bland_altman(parent, compressed, name=f"difference{k}", what=what),
                    "caption": f"{what}: difference of the two networks over their mean (Bland and Altman), with the "
                    "mean difference and 1.96 standard deviations to either side.",
                },
            ]
        return drawn


def _row(case: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    before, after = (words.mapping(case.get(side)).get("value") for side in ("parent", "compressed"))
    return before, after, case.get("label")


def _at(values: Any, place: int) -> float:
    found = words.number(values[place]) if isinstance(values, list) and place < len(values) else None
    return float("nan") if found is None else found


def _numbers(values: Any) -> Array | None:
    if not isinstance(values, list):
        return None
    return np.array([np.nan if words.number(value) is None else value for value in values], float)


def _moved(row: Mapping[str, Any]) -> float:
    """How far a case's numbers moved, on average."""
    return float(np.mean(np.abs(np.subtract(row["compressed"]["value"], row["parent"]["value"]))))


def _told(row: Mapping[str, Any]) -> str:
    before, after = (", ".join(f"{value:.4g}" for value in row[side]["value"][:3]) for side in ("parent", "compressed"))
    reference = row.get("label")
    known = "" if not reference else f", reference {', '.join('–' if v is None else f'{v:.4g}' for v in reference[:3])}"
    return f"{before} → {after}{known}"
