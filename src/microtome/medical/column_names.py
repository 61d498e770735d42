"""Which number of a network each column of a cohort is: by name where the cohort names them, or else by place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from microtome.errors import LabelError
from microtome.medical.cohort import Cohort
from microtome.types import Case

HINT = "Name the columns of the cohort as 'classes' of the --pipeline does."


def columns_matched(cohort: Cohort, network: Sequence[str], what: str) -> Cohort:
    """The same cohort with the network's names: references have one number for each, None where there is no column.

    Args:
        cohort: as it was read.
        network: names of the network's numbers.
        what: one of them is, such as `finding`.

    Raises:
        LabelError: none of the columns is one of the network's; or they have no names, and are not as many.
    """
    if not cohort.classes:
        return cohort
    notes = list(cohort.notes)
    if len(cohort.unnamed) == len(cohort.classes):
        if len(cohort.classes) != len(network):
            raise LabelError(
                f"The cohort has {len(cohort.classes)} numbers for each case, and the network {len(network)} "
                f"({', '.join(network)}).",
                HINT,
            )
        places: list[int | None] = list(range(len(network)))
        if len(network) > 1:
            notes.append(f"The cohort does not name its {what}s: they were taken in the network's order.")
    else:
        own = [_plain(name) for name in cohort.classes]
        places = [own.index(_plain(name)) if _plain(name) in own else None for name in network]
        if not any(place is not None for place in places):
            raise LabelError(
                f"The cohort has columns for {', '.join(cohort.classes)}, and the network gives {', '.join(network)}.",
                HINT,
            )
        absent = [name for name, place in zip(network, places, strict=True) if place is None]
        passed = [name for place, name in enumerate(cohort.classes) if place not in places]
        if absent:
            notes.append(f"The cohort has no {what} {', '.join(absent)}, which the network knows.")
        if passed:
            notes.append(f"The network has no {what} {', '.join(passed)}: that column was passed over.")
    cases = tuple(_moved(case, places) for case in cohort.cases)
    return replace(cohort, classes=tuple(network), unnamed=frozenset(), notes=tuple(notes), cases=cases)


def _moved(case: Case, places: Sequence[int | None]) -> Case:
    if not isinstance(case.label, tuple):
        return case
    numbers = case.label
    label = tuple(None if place is None else numbers[place] for place in places)
    return replace(case, label=label if any(value is not None for value in label) else None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
