"""A CSV manifest: columns `image`, `mask` or `label`, `patient`, `split`; further columns are subgroups."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microtome.errors import DataError, LabelError, OptionError, ReadError
from microtome.medical.formats.overlapping import with_labels
from microtome.medical.formats.table import (
    MANY_CLASSES,
    REFERENCES,
    SPLIT_NAMES,
    PatientOf,
    Row,
    Split,
    Table,
    count_of,
    listing,
    patient_in_name,
)

NAME = "manifest"
LOOKS_LIKE = "a .csv file with a column image and a column mask or label, or a folder with one such file"

COLUMNS = ("image", *REFERENCES, "patient", "split")
LOOKS_MISSPELT = 0.8  # difflib ratio: `patient_id` and `labels` are above, `site` and `slice` below


@dataclass(frozen=True)
class _Line:
    """A line of the file: its number for messages, its cells by column."""

    number: int
    cells: Mapping[str, str]


def matches(path: Path) -> bool:
    """A CSV file with an `image` column, or a folder that holds exactly one."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() == ".csv" else None
    found = [entry for entry in listing(path) if entry.suffix.lower() == ".csv" and _has_image_column(entry)]
    return found[0] if len(found) == 1 else None


def _has_image_column(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return "image" in [cell.strip().lower() for cell in stream.readline().split(",")]


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per line. Paths are relative to the CSV's folder.

    `image` may be several files joined by `;` (channels, or the slices of a series) or a folder with one DICOM series.
    With a `mask` column the task is segmentation, and a `label` column then is a subgroup. Labels are class numbers
    from 0, or names, which are numbered in the order of their characters.

    Raises:
        ReadError: not text, or a file that the manifest names is missing.
        DataError: columns missing or misspelt, a line too long or too short, an unknown split.
        LabelError: labels missing.
        OptionError: a patient pattern beside a patient column.
    """
    file = _file(path)
    if file is None:
        raise DataError(f"{path} holds no single manifest.", f"Wanted: {LOOKS_LIKE}.")
    columns, lines = _read(file)
    if patient_of is not None and "patient" in columns:
        raise OptionError(f"{file} has a patient column, so a patient pattern is not needed.", "Drop it.")
    name = next((name for name in REFERENCES if name in columns), next(iter(REFERENCES)))
    reference = REFERENCES[name]
    classes, labels = _labels(file, lines, name) if reference.cell != "file" else ((), [None] * len(lines))
    used = {"image", name, "patient", "split"}
    rule = patient_of or patient_in_name
    found = []
    for line, label in zip(lines, labels, strict=True):
        image = _images(file, line)
        mask = _path(file, line, name) if reference.cell == "file" and line.cells.get(name) else None
        found.append(
            Row(
                patient=_patient(file, line) if "patient" in columns else rule(image[0]),
                image=image,
                mask=mask,
                label=label,
                split=_split(file, line),
                subgroups={column: line.cells[column] for column in columns if column not in used},
            )
        )
    named = file.with_name("dataset.json")
    table = Table(reference.task, tuple(found), classes)
    if reference.cell == "file" and name in columns and named.is_file():
        table = with_labels(table, named)
    return _checked(table, file, name if name in columns else None, columns)


def _checked(table: Table, file: Path, name: str | None, columns: Sequence[str]) -> Table:
    splits = [row.split for row in table.rows]
    if any(splits) and not all(splits):
        raise DataError(
            f"{file} has a split for some lines only (none in line {splits.index(None) + 2}).", "Fill all or none."
        )
    notes = []
    kept = table.rows
    if name is not None and REFERENCES[name].cell == "file":
        kept = tuple(row for row in kept if row.mask is not None)
        if len(kept) < len(table.rows):
            notes.append(f"{count_of(len(table.rows) - len(kept), 'line')} without {name} left out.")
    others = [other for other in REFERENCES if other in columns and other != name]
    if others:
        notes.append(
            f"The manifest has masks and labels: the task is {table.task}, and the {others[0]} is a subgroup."
            if (name, others) == ("mask", ["label"])
            else f"The manifest's references are in the column {name}; {', '.join(others)} is a subgroup."
        )
    if not kept:
        raise DataError(f"{file} lists no cases.", "Fill in image and mask or label.")
    return replace(table, rows=kept, notes=tuple(notes))


def _read(file: Path) -> tuple[tuple[str, ...], list[_Line]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            table = list(csv.reader(stream, strict=True))
    except UnicodeDecodeError as error:
        raise ReadError(f"{file} is not UTF-8 text.", "Save it as CSV in UTF-8.") from error
    except (OSError, csv.Error) as error:
        raise ReadError(f"{file} cannot be read as CSV: {error}.", "Save it again as CSV.") from error
    if not table:
        raise ReadError(f"{file} is empty.", "Its first line must name the columns.")
    columns = tuple(cell.strip() if cell.strip().lower() not in COLUMNS else cell.strip().lower() for cell in table[0])
    _check_columns(file, columns)
    lines = []
    for number, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise DataError(f"{file}, line {number}, has {len(cells)} cells, not {len(columns)}.", "Correct the line.")
        lines.append(_Line(number, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    if not lines:
        raise DataError(f"{file} lists no cases.", "Fill in one line per image.")
    return columns, lines


def _check_columns(file: Path, columns: tuple[str, ...]) -> None:
    if "image" not in columns:
        hint = "Use commas between columns." if len(columns) == 1 else f"Wanted: {LOOKS_LIKE}."
        raise DataError(f"{file}, line 1, has no column 'image'.", hint)
    if len(set(columns)) < len(columns) or "" in columns:
        raise DataError(f"{file}, line 1, names a column twice or not at all.", "Give each column a name of its own.")
    missing = [column for column in COLUMNS if column not in columns]
    for column in columns:
        near = difflib.get_close_matches(column.lower(), missing, n=1, cutoff=LOOKS_MISSPELT)
        if column not in COLUMNS and near:
            raise DataError(f"{file}, line 1, has a column '{column}'.", f"Name it '{near[0]}', or else not so alike.")


def _path(file: Path, line: _Line, column: str, name: str | None = None) -> Path:
    path = file.parent / (name or line.cells[column])
    if not path.exists():
        raise ReadError(f"{file}, line {line.number}: the {column} {path} does not exist.", "Correct the path.")
    return path


def _images(file: Path, line: _Line) -> tuple[Path, ...]:
    names = [name.strip() for name in line.cells["image"].split(";") if name.strip()]
    if not names:
        raise DataError(f"{file}, line {line.number}, names no image.", "Fill in the column 'image'.")
    return tuple(_path(file, line, "image", name) for name in names)


def _patient(file: Path, line: _Line) -> str:
    if not line.cells["patient"]:
        raise DataError(f"{file}, line {line.number}, names no patient.", "Fill in the column, or drop it.")
    return line.cells["patient"]


def _split(file: Path, line: _Line) -> Split | None:
    name = line.cells.get("split", "")
    if name and name.lower() not in SPLIT_NAMES:
        raise DataError(f"{file}, line {line.number}, has the unknown split '{name}'.", "Use train, val or test.")
    return SPLIT_NAMES[name.lower()] if name else None


def _labels(file: Path, lines: Sequence[_Line], column: str) -> tuple[tuple[str, ...], Sequence[int | float | None]]:
    """Class names and the class of each line; or no names and a number for each line."""
    for line in lines:
        if not line.cells[column]:
            raise LabelError(f"{file}, line {line.number}, has no {column}.", "Fill it in or remove the line.")
    names = [line.cells[column] for line in lines]
    if REFERENCES[column].cell == "number":
        return (), [_number(file, line, column) for line in lines]
    numbers = [_whole(name) for name in names]
    if all(number is not None for number in numbers):
        top = max(number for number in numbers if number is not None)
        if top >= MANY_CLASSES:
            raise LabelError(f"{file} has the label {top}, which is no class number.", "Count classes from 0.")
        return tuple(str(k) for k in range(top + 1)), list(numbers)
    classes = tuple(sorted(set(names)))
    return classes, [classes.index(name) for name in names]


def _number(file: Path, line: _Line, column: str) -> float:
    try:
        value = float(line.cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelError(f"{file}, line {line.number}, has no number in the column {column}.", "Correct the line.")
    return value


def _whole(name: str) -> int | None:
    """A class number, also when a spreadsheet wrote it as `1.0`."""
    whole = name.removesuffix(".0")
    return int(whole) if whole.isascii() and whole.isdigit() else None
