"""A CSV manifest: columns `image`, a reference such as `mask`, `patient`, `split`; further columns are subgroups."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from microtome.errors import DataError, LabelError, OptionError, ReadError
from microtome.medical.formats.columns import NUMBERS, column_of, numbered, parts_of
from microtome.medical.formats.csv_table import ENDINGS, Line, is_of_windows, read_table, why_not
from microtome.medical.formats.dataset_json import Names
from microtome.medical.formats.overlapping import labels_beside
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import (
    MANY_CLASSES,
    REFERENCES,
    SPLIT_NAMES,
    PatientOf,
    Row,
    Split,
    Table,
    count_of,
    exists,
    listing,
)
from microtome.types import Label

NAME = "manifest"
LOOKS_LIKE = "a .csv file with a column image and a column mask or label, or a folder with one such file"

COLUMNS = ("image", *REFERENCES, "patient", "split")
SOMEONE = frozenset({"subject", "subject_id", "subjectid", "participant", "participant_id", "person", "pid", "mrn"})
LOOKS_MISSPELT = 0.8  # difflib ratio: `patient_id` and `labels` are above, `site` and `slice` below


def matches(path: Path) -> bool:
    """A table with an `image` column; a folder that holds exactly one, or one each for train, val and test."""
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _is_table(path) else []
    tables = [entry for entry in listing(path) if entry.is_file() and _is_table(entry)]
    found = [entry for entry in tables if not why_not(entry, "image")]
    parts = [_part(file) for file in found]
    return found if len(found) == 1 or (all(parts) and len(set(parts)) == len(parts)) else []


def _is_table(file: Path) -> bool:
    """Whether a file is a table by its ending; a text file is one if it has the column."""
    ending = file.suffix.lower()
    return ending in ENDINGS or (ending == ".txt" and not why_not(file, "image"))


def _part(file: Path) -> Split | None:
    """The part that a table is called after, such as `train.csv`."""
    return SPLIT_NAMES.get(file.stem.lower())


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per line. Paths are relative to the CSV's folder.

    `image` may be several files joined by `;` (channels, or the slices of a series) or a folder with one DICOM series.
    With a `mask` column the task is segmentation, and a `label` column then is a subgroup; the table is also one of
    classification. Labels are class numbers from 0, or names, which are numbered in the order of their characters.
    `findings` are answers 0 and 1, `value` numbers, both several in a cell or each in a column such as `value:age`;
    `target` is the image to be made. `REFERENCES` says which column is for which task.

    Raises:
        ReadError: not text, or a file that the manifest names is missing.
        DataError: columns missing or misspelt, a line too long or too short, an unknown split.
        LabelError: labels missing.
        OptionError: a patient pattern beside a patient column.
    """
    files = _files(path)
    if not files:
        raise DataError(f"{path} holds no single manifest.", f"Wanted: {LOOKS_LIKE}.")
    columns, lines = _read(files)
    if patient_of is not None and "patient" in columns:
        raise OptionError(f"{files[0]} has a patient column, so a patient pattern is not needed.", "Drop it.")
    names = PatientsInNames(files[0].parent)
    named = [name for name in REFERENCES if _cells(columns, name)]
    first = _table(lines, columns, named[0] if named else None, patient_of or names)
    patients = "the column patient" if "patient" in columns else names.text
    told = {file for line in lines for file in _images(line)} | {*files, files[0].with_name("dataset.json")}
    if any(map(is_of_windows, files)):
        notes = (*first.notes, "The manifest is not in UTF-8: it was read as Windows-1252.")
        first = replace(first, notes=notes)
    first = replace(first, told=frozenset(told), patients=patients)
    for name in named[1:]:
        labelled = [line for line in lines if any(line.cells[cell] for cell in _cells(columns, name))]
        try:
            also = _table(labelled, columns, name, patient_of or names)
        except DataError:
            continue  # it is a subgroup then, whatever it holds
        if also.task != first.task:
            return replace(first, also=replace(also, told=first.told, patients=patients))
    return first


def _table(lines: Sequence[Line], columns: Sequence[str], name: str | None, rule: PatientOf) -> Table:
    """The examinations with the references of one column, or of none."""
    reference = REFERENCES[name or next(iter(REFERENCES))]
    names, labels = _labels(lines, columns, name)
    used = {"image", "patient", "split", *(_cells(columns, name) if name else ())}
    found = []
    for line, label in zip(lines, labels, strict=True):
        image = _images(line)
        found.append(
            Row(
                patient=_patient(line) if "patient" in columns else rule(image[0]),
                image=image,
                mask=_path(line, name) if reference.cell == "mask" and name and line.cells[name] else None,
                target=_path(line, name) if reference.cell == "image" and name and line.cells[name] else None,
                label=label,
                split=_split(line),
                subgroups={column: line.cells[column] for column in columns if column not in used},
            )
        )
    table = Table(reference.task, tuple(found), names.classes, (), names.unnamed)
    if reference.cell == "mask" and name is not None and lines:
        table = labels_beside(table, lines[0].file.parent)
    return _checked(table, lines, columns, name)


def _checked(table: Table, lines: Sequence[Line], columns: Sequence[str], name: str | None) -> Table:
    without = next((line for line, row in zip(lines, table.rows, strict=True) if row.split is None), None)
    if without is not None and any(row.split for row in table.rows):
        raise DataError(
            f"{without.file} has a split for some lines only (none in line {without.number}).", "Fill all or none."
        )
    notes = []
    kept = table.rows
    if name is not None and REFERENCES[name].cell != "class":
        kept = tuple(row for row in kept if (row.mask or row.target or row.label) is not None)
        if len(kept) < len(table.rows):
            notes.append(f"{count_of(len(table.rows) - len(kept), 'line')} without {name} left out.")
    others = [other for other in REFERENCES if _cells(columns, other) and other != name]
    if others:
        notes.append(
            f"The manifest has masks and labels: the task is {table.task}, and the {others[0]} is a subgroup."
            if (name, others) == ("mask", ["label"])
            else f"The manifest's references are in the column {name}; {', '.join(others)} is a subgroup."
        )
    if not kept:
        raise DataError(
            f"{lines[0].file if lines else 'The manifest'} lists no cases.", "Fill in image, mask or label."
        )
    return replace(table, rows=kept, notes=tuple(notes))


def _read(files: Sequence[Path]) -> tuple[tuple[str, ...], list[Line]]:
    """The columns and lines of one manifest, or of those of train, val and test, which then are the split."""
    columns: tuple[str, ...] = ()
    lines: list[Line] = []
    for file in files:
        names, found = read_table(file, "image")
        own = {name: name.lower() if name.lower() in COLUMNS else column_of(name) for name in names}
        _check_columns(file, tuple(own[name] for name in names))
        if not found:
            raise DataError(f"{file} lists no cases.", "Fill in one line per image.")
        given = tuple(own[name] for name in names)
        if lines and set(given) != set(columns):
            raise DataError(f"{file} has other columns than {lines[0].file.name}.", "Name the columns alike.")
        columns = columns or given
        part = _part(file) if len(files) > 1 and "split" not in given else None
        implied = {} if part is None else {"split": part}
        lines += [
            replace(line, cells={own[name]: cell for name, cell in line.cells.items()} | implied) for line in found
        ]
    return columns, lines


def _check_columns(file: Path, columns: tuple[str, ...]) -> None:
    if "image" not in columns:
        raise DataError(f"{file}, line 1, has no column 'image'.", f"Wanted: {LOOKS_LIKE}.")
    if len(set(columns)) < len(columns):
        raise DataError(f"{file}, line 1, names a column twice.", "Give each column a name of its own.")
    someone = [column for column in columns if column.lower() in SOMEONE]
    if someone and "patient" not in columns:
        raise DataError(f"{file}, line 1, has a column '{someone[0]}'.", "Name it 'patient', or give that one, too.")
    missing = [column for column in COLUMNS if column not in columns]
    both = next((name for name in REFERENCES if name in columns and parts_of(columns, name)), None)
    if both is not None:
        raise DataError(f"{file}, line 1, has a column '{both}' and columns of its parts.", "Keep either.")
    for column in columns:
        near = difflib.get_close_matches(column.lower(), missing, n=1, cutoff=LOOKS_MISSPELT)
        if column not in COLUMNS and near and column_of(column).partition(":")[0] not in REFERENCES:
            raise DataError(f"{file}, line 1, has a column '{column}'.", f"Name it '{near[0]}', or else not so alike.")


def _path(line: Line, column: str, name: str | None = None) -> Path:
    """A file that a cell names; a path that was written on Windows is one here, too."""
    text = name or line.cells[column]
    for spelling in (text, text.replace("\\", "/")):
        if exists(line.file.parent / spelling):
            return line.file.parent / spelling
    raise ReadError(f"{line.place}: the {column} {line.file.parent / text} does not exist.", "Correct the path.")


def _images(line: Line) -> tuple[Path, ...]:
    names = [name.strip() for name in line.cells["image"].split(";") if name.strip()]
    if not names:
        raise DataError(f"{line.place}, names no image.", "Fill in the column 'image'.")
    return tuple(_path(line, "image", name) for name in names)


def _patient(line: Line) -> str:
    if not line.cells["patient"]:
        raise DataError(f"{line.place}, names no patient.", "Fill in the column, or drop it.")
    return re.sub(r"(?<=^\d)(\d*)\.0+$", r"\1", line.cells["patient"])  # a spreadsheet's 17.0 is 17


def _split(line: Line) -> Split | None:
    name = line.cells.get("split", "")
    if name and name.lower() not in SPLIT_NAMES:
        raise DataError(f"{line.place}, has the unknown split '{name}'.", "Use train, val or test.")
    return SPLIT_NAMES[name.lower()] if name else None


def _cells(columns: Sequence[str], name: str) -> tuple[str, ...]:
    """The columns that hold a reference: its own, or those of its parts."""
    return (name,) if name in columns else parts_of(columns, name)


def _labels(lines: Sequence[Line], columns: Sequence[str], name: str | None) -> tuple[Names, Sequence[Label | None]]:
    """Names of the classes or numbers, and the reference of each line; neither where it lies in files."""
    if name is not None and REFERENCES[name].cell in NUMBERS:
        found = numbered(lines, columns, name)
        return Names(found.names, found.unnamed), found.labels
    if name is None or REFERENCES[name].cell != "class":
        return Names(), [None] * len(lines)
    return _classes(lines, name)


def _classes(lines: Sequence[Line], column: str) -> tuple[Names, Sequence[int]]:
    """Class names and the class of each line."""
    for line in lines:
        if not line.cells[column]:
            raise LabelError(f"{line.place}, has no {column}.", "Fill it in or remove the line.")
    names = [line.cells[column] for line in lines]
    numbers = [_whole(name) for name in names]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        top = max(known, default=0)
        if top >= MANY_CLASSES:
            raise LabelError(f"{lines[0].file} has the label {top}, which is no class number.", "Count from 0.")
        everyone = range(top + 1)
        return Names(tuple(str(k) for k in everyone), frozenset(everyone)), known
    classes = tuple(sorted(set(names)))
    place = {name: k for k, name in enumerate(classes)}
    return Names(classes), [place[name] for name in names]


def _whole(name: str) -> int | None:
    """A class number, also when a spreadsheet wrote it as `1.0`."""
    whole = name.removesuffix(".0")
    return int(whole) if whole.isascii() and whole.isdigit() and len(whole) < 20 else None
