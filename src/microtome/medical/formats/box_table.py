"""Boxes in a table: a line per box, and one without numbers for an image that has none."""

from __future__ import annotations

import math
from pathlib import Path

from microtome.errors import DataError, LabelError, ReadError
from microtome.medical.formats.csv_table import ENDINGS, Line, read_table, why_not
from microtome.medical.formats.table import SPLIT_NAMES, PatientOf, Row, Split, Table, exists
from microtome.types import Boxes

# What columns may be called: of a corner, of a size, of a place in millimetres; axes of pictures are x (columns), y.
CORNERS = (("x_min", "y_min", "x_max", "y_max"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
VOXELS = (("i_min", "j_min", "k_min", "i_max", "j_max", "k_max"),)
WORLD = (("coordx", "coordy", "coordz", "diameter_mm"),)  # LUNA16
CLASSES = ("class", "label", "category", "finding")
ONLY = "object"
KNOWN = (*CORNERS, *SIZES, *VOXELS, *WORLD)


def is_one(file: Path) -> bool:
    """Whether a file is a table with images and the numbers of boxes."""
    if file.suffix.lower() not in ENDINGS or why_not(file, "image"):
        return False
    names = _header(file)
    return _kind(names) is not None and not {"mask", "target"} & set(names)


def read(file: Path, patient_of: PatientOf, part: Split | None) -> Table:
    """The images and boxes of a table.

    Args:
        file: CSV with a column `image`, the numbers of a box, and perhaps `class`, `patient` and `split`.
        patient_of: the patient of an image where the table does not say it.
        part: which part of the cohort it is, if that is told.
    """
    columns, lines = read_table(file, "image")
    names = {column.lower(): column for column in columns}
    kind = _kind(tuple(names))
    assert kind is not None
    label = next((names[name] for name in CLASSES if name in names), None)
    of_image: dict[str, list[Line]] = {}
    for line in lines:
        of_image.setdefault(line.cells[names["image"]], []).append(line)
    classes = sorted({line.cells[label] for line in lines if label and line.cells[label]}) or [ONLY]
    used = {names[name] for name in (*kind, "image", "patient", "split") if name in names} | (
        {label} if label else set()
    )
    rows = []
    for name, own in of_image.items():
        image = _image(own[0], name)
        found = [box for line in own if (box := _box(line, kind, names)) is not None]
        labels = [classes.index(line.cells[label]) if label and line.cells[label] else 0 for line in own]
        boxed = [k for k, line in zip(labels, own, strict=True) if _box(line, kind, names) is not None]
        first = own[0].cells
        patient = first.get(names.get("patient", ""), "")
        split = first.get(names.get("split", ""), "")
        if split and split.lower() not in SPLIT_NAMES:
            raise DataError(f"{own[0].place}, has the unknown split '{split}'.", "Use train, val or test.")
        rows.append(
            Row(
                patient=patient or patient_of(image),
                image=(image,),
                split=SPLIT_NAMES[split.lower()] if split else part,
                subgroups={column: first[column] for column in columns if column not in used},
                boxes=Boxes(tuple(boxed), tuple(found), "lps" if kind in WORLD else "voxel"),
            )
        )
    return Table("detection", tuple(rows), tuple(classes))


def _header(file: Path) -> tuple[str, ...]:
    try:
        return tuple(column.lower() for column in read_table(file, "image")[0])
    except (ReadError, DataError):
        return ()


def _kind(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The columns that hold a box."""
    return next((kind for kind in KNOWN if set(kind) <= set(names)), None)


def _box(line: Line, kind: tuple[str, ...], names: dict[str, str]) -> tuple[float, ...] | None:
    """The lower and the upper corner of a line's box, axes as in the image's array; None where it has none."""
    cells = [line.cells[names[name]] for name in kind]
    if not any(cells):
        return None
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise LabelError(f"{line.place}, has no number in {', '.join(kind)}.", "Fill in all of them, or none.")
    if kind in CORNERS:
        x0, y0, x1, y1 = values
        return y0, x0, y1, x1
    if kind in SIZES:
        x, y, width, height = values
        return y, x, y + height, x + width
    if kind in WORLD:
        *centre, diameter = values
        return (*(c - diameter / 2 for c in centre), *(c + diameter / 2 for c in centre))
    return tuple(values)


def _image(line: Line, name: str) -> Path:
    for place in ("", "images"):
        path = line.file.parent / place / name
        if name and exists(path):
            return path
    raise ReadError(f"{line.place}: the image {name or '(without a name)'} does not exist.", "Correct the path.")
