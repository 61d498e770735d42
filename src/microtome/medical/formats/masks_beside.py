"""Masks that lie beside their images: `x.png`, `x_mask.png` in one folder, or `case/case_t1`, `case/case_seg`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.dataset_json import Names, label_names
from microtome.medical.formats.pairing import bases, masks_beside
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import (
    SPLIT_NAMES,
    PatientOf,
    Row,
    Split,
    Table,
    count_of,
    image_files,
)
from microtome.medical.readers.kind import stem_of

NAME = "masks_beside"
LOOKS_LIKE = "images with masks beside them, called like their image and _mask, _seg, _label, …"

LOOK = 200  # folders that are looked at to recognise the layout


def matches(path: Path) -> bool:
    """Some folder holds an image and, beside it, its mask."""
    return path.is_dir() and any(
        any(masks) for folder in itertools.islice(_folders(path), LOOK) for _, masks in _cases(folder)
    )


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image that has a mask. The files of a folder below are one patient's, unless it is train, val, test.

    Where a mask is called like no image, but like the beginning of several (`case_t1`, `case_t2`, `case_seg`), these
    are the channels of one image, in the order of their names. Class names come from `dataset.json` if there is one.

    Raises:
        DataError: masks of two kinds for one image, or no image has a mask.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", f"Wanted: {LOOKS_LIKE}.")
    names = PatientsInNames(path)
    found: list[Row] = []
    without: list[Path] = []
    for folder in _folders(path):
        split = _split(folder, path)
        own = folder == path or folder.name.lower() in SPLIT_NAMES
        rule = patient_of or (names if own else names.folder)
        for image, masks in _cases(folder):
            if masks:
                found.append(Row(rule(image[0]), image, masks[0], split=split, further_masks=masks[1:]))
            else:
                without += image
    if not found:
        raise DataError(f"{path} holds no image with a mask beside it.", f"Wanted: {LOOKS_LIKE}.")
    named = path / "dataset.json"
    known = label_names(named) if named.is_file() else Names()
    told = frozenset(without) | ({named} if named.is_file() else set())
    notes = _notes(found, len(without))
    return Table("segmentation", tuple(found), known.classes, notes, known.unnamed, told, names.text)


def _notes(found: list[Row], without: int) -> tuple[str, ...]:
    notes = [f"{count_of(without, 'image')} without mask left out."] if without else []
    channels = max(len(row.image) for row in found)
    if channels > 1:
        notes.append(f"Up to {channels} files of a case are taken for its channels, in the order of their names.")
    return tuple(notes)


def _folders(path: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield Path(folder)


def _cases(folder: Path) -> list[tuple[tuple[Path, ...], tuple[Path, ...]]]:
    """The images of a folder, each with its masks; images that share a mask are channels."""
    pairs = masks_beside(image_files(folder))
    cases: dict[tuple[Path, ...], tuple[Path, ...]] = {(image,): tuple(masks) for image, masks in pairs.masks.items()}
    for mask in [image for image, masks in pairs.masks.items() if not masks]:
        for base, _ in bases(stem_of(mask)):
            channels = tuple(
                images[0]
                for images, masks in cases.items()
                if not masks and images != (mask,) and stem_of(images[0]).startswith((f"{base}_", f"{base}-"))
            )
            if channels and (mask,) in cases:
                for image in (*channels, mask):
                    del cases[(image,)]
                cases[channels] = (mask,)
    return list(cases.items())


def _split(folder: Path, root: Path) -> Split | None:
    parts = folder.relative_to(root).parts
    return SPLIT_NAMES.get(parts[0].lower()) if parts else None
