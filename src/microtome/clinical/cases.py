"""What is known of each case before it is summarised: its scores or probabilities under both networks."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from microtome.clinical.empty import paired_difference
from microtome.types import Array

Flat = dict[str, float]


class Belonging(Protocol):
    """What belongs to a patient."""

    @property
    def patient(self) -> str:
        """Pseudonym of the patient."""


@dataclass(frozen=True)
class CaseScores:
    """A segmented case, scored.

    Attributes:
        case: pseudonym of the case.
        patient: pseudonym of the patient.
        parent: what `score_segmentation` gave for the parent; empty for a case without reference.
        compressed: the same for the compressed network.
        agreement: fraction of voxels with the parent's label.
        empty: structures that the reference does not have (`empty_structures`).
        subgroups: column → value, such as site.
        trivial: Dice of a mask of the whole image, for each structure that the reference has.
        found: voxels of structures that both networks give the same label, and the sum of those that each finds.
    """

    case: str
    patient: str
    parent: Mapping[str, Mapping[str, float]]
    compressed: Mapping[str, Mapping[str, float]]
    agreement: float
    empty: tuple[str, ...] = ()
    subgroups: Mapping[str, str] = field(default_factory=dict)
    trivial: Mapping[str, float] = field(default_factory=dict)
    found: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class CasePrediction:
    """A classified case.

    Attributes:
        case: pseudonym of the case.
        patient: pseudonym of the patient.
        parent: the parent's probabilities, one per class.
        compressed: those of the compressed network.
        label: the reference class; None if unknown.
        subgroups: column → value, such as site.
    """

    case: str
    patient: str
    parent: Sequence[float]
    compressed: Sequence[float]
    label: int | None = None
    subgroups: Mapping[str, str] = field(default_factory=dict)


def flatten(scores: Mapping[str, Mapping[str, float]], *, leave_out: Collection[str] = ()) -> Flat:
    """`{"dice": {"liver": 0.9}}` → `{"dice": 0.9, "dice/liver": 0.9}`; the mean is over the defined structures.

    Structures to leave out have no part in the mean, and keep their own values.
    """
    flat: Flat = {}
    for metric, by_structure in scores.items():
        flat[metric] = _mean(value for name, value in by_structure.items() if name not in leave_out)
        flat.update({f"{metric}/{name}": value for name, value in by_structure.items()})
    return flat


def flatten_difference(case: CaseScores, *, leave_out: Collection[str] = ()) -> Flat:
    """Compressed − parent of one case under the names of `flatten`.

    Structures are paired first (`empty.paired_difference`), so that the mean over structures compares the same ones.
    """
    paired = {
        metric: {
            name: paired_difference(metric, value, case.compressed[metric][name])
            for name, value in by_structure.items()
        }
        for metric, by_structure in case.parent.items()
    }
    return flatten(paired, leave_out=leave_out)


def patients_of(cases: Sequence[Belonging]) -> list[Hashable]:
    """The patient of each case."""
    return [case.patient for case in cases]


def probabilities_of(cases: Sequence[CasePrediction], side: str) -> Array:
    """One network's probabilities, float64 (cases, classes); `side` is `parent` or `compressed`."""
    return np.array([getattr(case, side) for case in cases], dtype=np.float64)


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
