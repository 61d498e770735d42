"""Names for cases and patients that say nothing of who they are, nor of the order of their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microtome.medical.formats.table import Row
from microtome.types import Case, Role

DIGITS = 4

Key = tuple[tuple[Path, ...], int | None, int]
"""An examination, whatever it is used for: its files, its place in them, and how often they were there before."""


@dataclass(frozen=True)
class Name:
    """What an examination is called, and what it is for."""

    case: str
    patient: str
    role: Role


def by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    """Examinations by what they are read from, in their order."""
    seen: Counter[tuple[tuple[Path, ...], int | None]] = Counter()
    found: dict[Key, Row] = {}
    for row in rows:
        place = (row.image, row.index)
        found[(*place, seen[place])] = row
        seen[place] += 1
    return found


def named(rows: Mapping[Key, Row], roles: Mapping[Key, Role], seed: int) -> dict[Key, Name]:
    """A name for every examination that has a role, in the order of the names, which is a random one."""
    rng = np.random.default_rng([seed, 1])  # apart from the stream that splits
    kept = [key for key in rows if key in roles]
    patients = sorted({rows[key].patient for key in kept})
    numbers = dict(zip(patients, rng.permutation(len(patients)) + 1, strict=True))
    width = max(DIGITS, len(str(len(kept))))
    found: dict[Key, Name] = {}
    for number, position in enumerate(rng.permutation(len(kept)), start=1):
        key = kept[position]
        patient = f"patient-{numbers[rows[key].patient]:0{width}d}"
        found[key] = Name(f"case-{number:0{width}d}", patient, roles[key])
    return found


def case_of(row: Row, name: Name) -> Case:
    """An examination under its name."""
    return Case(
        id=name.case,
        patient=name.patient,
        image=row.image,
        mask=row.mask,
        label=row.label,
        index=row.index,
        role=name.role,
        subgroups=dict(row.subgroups),
        further_masks=row.further_masks,
        target=row.target,
        boxes=row.boxes,
    )


def real_name(row: Row, root: Path) -> str:
    """The files of an examination, as they are called below a folder."""
    names = [file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file) for file in row.image]
    return ";".join(names) + (f"#{row.index}" if row.index is not None else "")
