"""Why an equal score of two networks would say nothing: they agree in too little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microtome.clinical.cases import CaseScores
from microtome.types import Interval

# Below, two networks give so many voxels or cases another label that an equal score is a coincidence.
LEAST_AGREEMENT = 0.9
# The same of structures, however small they are: Dice of all voxels of all cases, between the two networks.
LEAST_OVERLAP = 0.7


@dataclass(frozen=True)
class Doubt:
    """Why equal scores would say nothing.

    Attributes:
        cause: `reference`, `parent` or `agreement`.
        reason: a full sentence.
    """

    cause: str
    reason: str


def disagreement(share: Interval, what: str) -> list[Doubt]:
    """A doubt where two networks agree in so little that an equal score is a coincidence.

    Args:
        share: of voxels or cases, 0 to 1.
        what: such as `voxels`.
    """
    if share.value is None or share.value >= LEAST_AGREEMENT:
        return []
    reason = f"The two networks agree in {share.value:.1%} of the {what} only: they do not do the same."
    return [Doubt("agreement", reason)]


def little_in_common(cases: Sequence[CaseScores]) -> list[Doubt]:
    """A doubt where two networks find different voxels: the background, in which all agree, says nothing of that."""
    both, each = (sum(case.found[place] for case in cases) for place in (0, 1))
    if each == 0 or 2 * both >= LEAST_OVERLAP * each:
        return []
    reason = f"What the two networks find has a Dice of {2 * both / each:.2f} between them: they do not do the same."
    return [Doubt("agreement", reason)]
