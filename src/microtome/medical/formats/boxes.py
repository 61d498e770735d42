"""Boxes: COCO's JSON, MONAI's lists of cases, or a table with a line per box."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import DataError, ReadError
from microtome.medical.formats import box_json, box_table
from microtome.medical.formats.dataset_json import read_json
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import SPLIT_NAMES, PatientOf, Split, Table, listing, subfolder

NAME = "boxes"
LOOKS_LIKE = "a COCO .json file, a MONAI list of cases with boxes, or a .csv file with a line per box"

FOLDERS = ("annotations",)
MOST_BYTES = 1 << 30  # of a JSON file that is looked into


def matches(path: Path) -> bool:
    """One file of boxes, a folder that holds exactly one, or one each for train, val and test."""
    return bool(_files(path))


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image. Paths are relative to the file's folder, or to `images` in it or beside it.

    Raises:
        ReadError: an image is missing, or a file is not JSON or CSV.
        DataError: what does not hold together.
        LabelError: a box that is none, or one that lies outside of its image, where its size is told.
    """
    files = _files(path)
    if not files:
        raise DataError(f"{path} holds no boxes.", f"Wanted: {LOOKS_LIKE}.")
    names = PatientsInNames(path if path.is_dir() else path.parent)
    parts = {file: _part(file) if len(files) > 1 else None for file in files}
    read = {True: box_table.read, False: box_json.read}
    found = [read[file.suffix.lower() != ".json"](file, patient_of or names, parts[file]) for file in files]
    table = found[0]
    for other in found[1:]:
        if other.classes != table.classes:
            raise DataError(f"{files[0]} and the files beside it have other classes.", "Name the same in each.")
        table = Table(table.task, (*table.rows, *other.rows), table.classes, (*table.notes, *other.notes))
    images = {image for row in table.rows for image in row.image}
    notes = tuple(dict.fromkeys(table.notes))
    return Table(
        table.task, table.rows, table.classes, notes, found[0].unnamed, frozenset({*files, *images}), names.text
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _is_one(path) else []
    folders = [path, *(folder for folder in (subfolder(path, FOLDERS),) if folder is not None)]
    found = [entry for folder in folders for entry in listing(folder) if entry.is_file() and _is_one(entry)]
    parts = [_part(file) for file in found]
    return found if len(found) == 1 or (all(parts) and len(set(parts)) == len(parts)) else []


def _is_one(file: Path) -> bool:
    if file.suffix.lower() == ".json" and file.stat().st_size <= MOST_BYTES:
        try:
            return box_json.is_one(read_json(file))
        except ReadError:
            return False
    return box_table.is_one(file)


def _part(file: Path) -> Split | None:
    """The part that a file is called after, such as `train.json` or `instances_val2017.json`."""
    words = file.stem.lower().replace("-", "_").split("_")
    plain = [word.rstrip("0123456789") for word in words]
    return next((SPLIT_NAMES[word] for word in plain if word in SPLIT_NAMES), None)
