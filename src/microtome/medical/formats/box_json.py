"""Boxes in JSON: COCO's images and annotations (Lin et al., ECCV 2014), or MONAI's lists of cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from microtome.errors import DataError, LabelError, ReadError
from microtome.medical.formats.dataset_json import read_json
from microtome.medical.formats.table import SPLIT_NAMES, PatientOf, Row, Split, Table, count_of, exists
from microtome.types import Boxes

OWN = ("file_name", "id", "width", "height", "license", "coco_url", "flickr_url", "date_captured", "patient", "split")
PLACES = ("", "images", "../images", "..")  # of images, below the folder of the file
Frame = Literal["voxel", "ras", "lps"]
MODES = ("xyxy", "xyzxyz", "cccwhd", "ccwh", "xywh", "xyzwhd")


def is_one(content: Mapping[str, Any]) -> bool:
    """Whether JSON is COCO's, or MONAI's with boxes."""
    return _is_coco(content) or bool(_boxed_lists(content))


def read(file: Path, patient_of: PatientOf, part: Split | None) -> Table:
    """The images and boxes of a file.

    Args:
        file: of JSON.
        patient_of: the patient of an image where the file does not say it.
        part: which part of the cohort it is, if that is told.
    """
    content = read_json(file)
    return _coco(file, content, patient_of, part) if _is_coco(content) else _lists(file, content, patient_of)


def _is_coco(content: Mapping[str, Any]) -> bool:
    return all(isinstance(content.get(name), list) for name in ("images", "annotations", "categories"))


def _boxed_lists(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    """MONAI's lists by their names, where an entry has boxes."""
    lists = {name: value for name, value in content.items() if name.lower() in SPLIT_NAMES and isinstance(value, list)}
    boxed = any(isinstance(entry, dict) and "box" in entry for value in lists.values() for entry in value)
    return lists if boxed else {}


def _coco(file: Path, content: Mapping[str, Any], patient_of: PatientOf, part: Split | None) -> Table:
    """COCO: boxes are [x, y, width, height] in pixels, x along the columns."""
    categories = {entry.get("id"): str(entry.get("name")) for entry in content["categories"] if isinstance(entry, dict)}
    if not categories or len(set(categories.values())) < len(categories):
        raise DataError(f"{file} has no categories, or two of one name.", "Give each an id and a name of its own.")
    numbers = {identity: k for k, identity in enumerate(sorted(categories, key=str_or_number))}
    by_image: dict[Any, list[tuple[int, tuple[float, ...]]]] = {}
    sizes = {entry["id"]: entry for entry in content["images"] if isinstance(entry, dict) and "id" in entry}
    crowds = 0
    for entry in content["annotations"]:
        image, category = entry.get("image_id"), entry.get("category_id")
        place = f"{file}: the annotation {entry.get('id')}"
        if image not in sizes or category not in numbers:
            raise DataError(f"{place} names an image or a category that is not there.", "Correct the file.")
        if entry.get("iscrowd"):
            crowds += 1
            continue
        x, y, width, height = _numbers(entry.get("bbox"), 4, place)
        corners = (y, x, y + height, x + width)
        _inside(corners, sizes[image], place)
        by_image.setdefault(image, []).append((numbers[category], corners))
    rows = []
    for identity, entry in sizes.items():
        image = _image(file, str(entry.get("file_name", "")))
        found = by_image.get(identity, [])
        own = entry.get("split")
        rows.append(
            Row(
                patient=str(entry["patient"]) if entry.get("patient") not in (None, "") else patient_of(image),
                image=(image,),
                split=SPLIT_NAMES.get(str(own).lower()) if own else part,
                subgroups={k: str(v) for k, v in entry.items() if k not in OWN and isinstance(v, str | int)},
                boxes=Boxes(tuple(k for k, _ in found), tuple(corners for _, corners in found)),
            )
        )
    notes = (f"{count_of(crowds, 'box', 'boxes')} of crowds left out.",) if crowds else ()
    return Table("detection", tuple(rows), tuple(categories[identity] for identity in numbers), notes)


def _lists(file: Path, content: Mapping[str, Any], patient_of: PatientOf) -> Table:
    """MONAI: `box` and `label` of each entry; `box_mode`, `frame` and `label_names` of the whole, if told."""
    mode, frame = str(content.get("box_mode", "cccwhd")).lower(), str(content.get("frame", "lps")).lower()
    if mode not in MODES or frame not in ("voxel", "ras", "lps"):
        raise DataError(
            f"{file} has the box_mode '{mode}' and the frame '{frame}'.",
            f"Use one of {', '.join(MODES)}; and voxel, or ras or lps for millimetres.",
        )
    rows, top = [], 0
    for name, entries in _boxed_lists(content).items():
        for number, entry in enumerate(entries):
            place = f"{file}: entry {number + 1} of {name}"
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise DataError(f"{place} names no image.", "Correct the file.")
            boxes, labels = entry.get("box") or [], entry.get("label") or []
            if len(boxes) != len(labels) or not all(isinstance(k, int) and k >= 0 for k in labels):
                raise LabelError(f"{place} has {len(boxes)} boxes and the labels {labels}.", "Give each box a number.")
            image = _image(file, entry["image"])
            corners = tuple(_corners(box, mode, place) for box in boxes)
            top = max([top, *labels])
            patient = entry.get("patient")
            rows.append(
                Row(
                    patient=patient_of(image) if patient is None else str(patient),
                    image=(image,),
                    split=SPLIT_NAMES[name.lower()],
                    boxes=Boxes(tuple(labels), corners, frame),  # type: ignore[arg-type]
                )
            )
    names = content.get("label_names")
    classes = tuple(map(str, names)) if isinstance(names, list) and len(names) > top else ()
    notes = (
        ()
        if "box_mode" in content
        else (
            f"{file.name} does not say what its boxes are: they were taken for centres and sizes in mm, as in MONAI's "
            "lists of LUNA16 (box_mode cccwhd, frame lps).",
        )
    )
    unnamed = frozenset() if classes else frozenset(range(top + 1))
    return Table("detection", tuple(rows), classes or tuple(f"class {k}" for k in range(top + 1)), notes, unnamed)


def _corners(box: Any, mode: str, place: str) -> tuple[float, ...]:
    """The lower and the upper corner of a box, in the order of its own axes."""
    values = _numbers(box, len(mode), place)
    d = len(values) // 2
    first, second = values[:d], values[d:]
    if mode.startswith("c"):
        halves = [size / 2 for size in second]
        low = (c - half for c, half in zip(first, halves, strict=True))
        return (*low, *(c + half for c, half in zip(first, halves, strict=True)))
    if mode.endswith(("wh", "whd")):
        return (*first, *(c + s for c, s in zip(first, second, strict=True)))
    return tuple(values)


def _numbers(values: Any, count: int, place: str) -> list[float]:
    given = values if isinstance(values, list) else []
    if len(given) != count or not all(isinstance(v, int | float) and math.isfinite(v) for v in given):
        raise LabelError(f"{place} has the box {values}, which is not {count} numbers.", "Correct the file.")
    return [float(value) for value in given]


def _inside(corners: tuple[float, ...], image: Mapping[str, Any], place: str) -> None:
    """Refuse a box beyond the size that the file tells of its image."""
    height, width = image.get("height"), image.get("width")
    y0, x0, y1, x1 = corners
    if not isinstance(height, int | float) or not isinstance(width, int | float):
        return
    if min(y0, x0) < -1 or y1 > height + 1 or x1 > width + 1:
        raise LabelError(
            f"{place} has a box outside of its image: it goes to ({x1:g}, {y1:g}), and the image is {width}×{height}.",
            "COCO's boxes are [x, y, width, height]: correct the file.",
        )


def _image(file: Path, name: str) -> Path:
    for place in PLACES:
        path = file.parent / place / name
        if name and exists(path):
            return path.resolve() if place.startswith("..") else path
    raise ReadError(f"{file}: the image {name or '(without a name)'} does not exist.", "Correct the file's names.")


def str_or_number(value: Any) -> tuple[int, float, str]:
    """Order ids by their number where they are numbers."""
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
