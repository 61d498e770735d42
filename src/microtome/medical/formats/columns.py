"""References that are numbers: several in one cell, `1;0;1`, or each in a column of its own, `findings:oedema`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microtome.errors import LabelError
from microtome.medical.formats.csv_table import Line
from microtome.medical.formats.table import REFERENCES, Reference, Row, Table

APART, PART = ";", ":"
NUMBERS = ("numbers", "answers")
ANSWERS: Mapping[str, float] = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Numbered:
    """References of all lines.

    Attributes:
        names: of the numbers.
        unnamed: those whose names are only made of their place.
        labels: of each line; None where it has none at all.
    """

    names: tuple[str, ...]
    unnamed: frozenset[int]
    labels: tuple[Numbers | None, ...]


def column_of(name: str) -> str:
    """The column's name as microtome writes it: `value`, `findings:oedema`; any other as it is."""
    head, part, rest = name.partition(PART)
    known = head.strip().lower()
    if not part:
        return known if known in REFERENCES else name
    own = next((one for one, reference in REFERENCES.items() if known in (one, one.removesuffix("s"))), None)
    return f"{own}{PART}{rest.strip()}" if own and REFERENCES[own].cell in NUMBERS and rest.strip() else name


def parts_of(columns: Iterable[str], name: str) -> tuple[str, ...]:
    """The columns that hold one number each of a reference."""
    return tuple(column for column in columns if column.startswith(f"{name}{PART}"))


def numbered(lines: Sequence[Line], columns: Sequence[str], name: str) -> Numbered:
    """The references in a column, or in the columns of its parts.

    Raises:
        LabelError: a cell that holds no such number; or cells with another count of them.
    """
    reference, parts = REFERENCES[name], parts_of(columns, name)
    if parts:
        table = [tuple(_number(line.cells[part], reference, part, line.place) for part in parts) for line in lines]
        return Numbered(tuple(part.partition(PART)[2] for part in parts), frozenset(), _known(table))
    labels: list[Numbers] = []
    counts: dict[int, str] = {}
    for line in lines:
        cells = line.cells[name].split(APART) if line.cells[name] else []
        label = tuple(_number(cell, reference, name, line.place) for cell in cells)
        if label and counts and len(label) not in counts:
            count, place = next(iter(counts.items()))
            raise LabelError(
                f"{line.place}, has {len(label)} numbers in the column {name}, and {place} has {count}.",
                f"Fill in as many for each, '{APART}' between them; leave the place of a missing one empty.",
            )
        if label:
            counts.setdefault(len(label), line.place)
        labels.append(label)
    count = next(iter(counts), 0)
    names = (name,) if count == 1 else tuple(f"{name} {k + 1}" for k in range(count))
    return Numbered(names, frozenset(range(count)), _known(labels))


def referenced(table: Table, task: str, names: Sequence[str], path: Path) -> Table:
    """The same table with references from further columns, where it has one for each of these names and no other.

    Args:
        table: as a format found it.
        task: what the columns are for.
        names: of the columns, in upper or lower case; the other columns stay subgroups.
        path: of the cohort, for errors.

    Raises:
        LabelError: a cell that holds no such number.
    """
    reference = next((one for one in REFERENCES.values() if one.task == task and one.cell in NUMBERS), None)
    has_one = any(row.label is not None or row.mask is not None or row.target is not None for row in table.rows)
    if reference is None or has_one or not table.rows:
        return table
    known = {column.casefold(): column for column in table.rows[0].subgroups}
    columns = [known[name.casefold()] for name in names if name.casefold() in known]
    if not columns:
        return table

    def row_of(row: Row) -> Row:
        place = f"{path}: the line of {row.image[0].name}"
        label = tuple(_number(row.subgroups[column], reference, column, place) for column in columns)
        rest = {column: value for column, value in row.subgroups.items() if column not in columns}
        return replace(row, label=_known([label])[0], subgroups=rest)

    rows = tuple(row_of(row) for row in table.rows)
    return replace(table, task=task, classes=tuple(columns), unnamed=frozenset(), rows=rows)


def _known(labels: Sequence[Numbers]) -> tuple[Numbers | None, ...]:
    return tuple(label if any(value is not None for value in label) else None for label in labels)


def _number(cell: str, reference: Reference, column: str, place: str) -> float | None:
    """A cell's number; None where it is empty."""
    text = cell.strip()
    if not text:
        return None
    if reference.cell == "answers":
        if text not in ANSWERS:
            raise LabelError(
                f"{place}, has '{text[:20]}' in the column {column}, which is neither 0 nor 1.",
                "Write 1 where the finding is there, 0 where it is not, and nothing where nobody knows.",
            )
        return ANSWERS[text]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelError(
            f"{place}, has '{text[:20]}' in the column {column}, which is no number.",
            "Correct the line, or leave the cell empty where nobody knows.",
        )
    return value
