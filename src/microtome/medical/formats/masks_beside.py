"""Masks that lie beside their images: `x.png` and `x_mask.png` or `masks/x.png`; `case/case_t1`, `case/case_seg`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.image_masks import MASKS, pair
from microtome.medical.formats.overlapping import labels_beside
from microtome.medical.formats.pairing import bases, masks_beside
from microtome.medical.formats.patients import FEW_FOLDERS, PatientsInNames
from microtome.medical.formats.table import (
    SPLIT_NAMES,
    PatientOf,
    Row,
    Split,
    Table,
    count_of,
    image_files,
    subfolder,
)
from microtome.medical.readers.kind import is_dicom, stem_of

NAME = "masks_beside"
LOOKS_LIKE = "images with masks beside them, called like their image and _mask, _seg, _label, …"

LOOK = 200  # folders that are looked at to recognise the layout


def matches(path: Path) -> bool:
    """Some folder holds an image and, beside it, its mask."""
    return path.is_dir() and any(
        any(masks) for folder in itertools.islice(_folders(path), LOOK) for _, masks in _cases(folder)
    )


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image that has a mask, beside it or in a folder `masks` beside it.

    The files of a folder below are one patient's, unless it is train, val or test, or there are less than three.

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
    cases = {folder: _cases(folder) for folder in _folders(path)}
    below = [f for f, its in cases.items() if its and f != path and f.name.lower() not in SPLIT_NAMES]
    for folder, its in cases.items():
        split = _split(folder, path)
        rule = patient_of or (names.folder if folder in below and len(below) >= FEW_FOLDERS else names)
        for image, masks in its:
            if masks:
                found.append(Row(rule(image[0]), image, masks[0], split=split, further_masks=masks[1:]))
            else:
                without += image
    if not found:
        raise DataError(f"{path} holds no image with a mask beside it.", f"Wanted: {LOOKS_LIKE}.")
    told, notes = frozenset({*without, path / "dataset.json"}), _notes(found, len(without))
    return labels_beside(Table("segmentation", tuple(found), (), notes, told=told, patients=names.text), path)


def _notes(found: list[Row], without: int) -> tuple[str, ...]:
    notes = [f"{count_of(without, 'image')} without mask left out."] if without else []
    channels = max(len(row.image) for row in found)
    if channels > 1:
        notes.append(f"Up to {channels} files of a case are taken for its channels, in the order of their names.")
    return tuple(notes)


def _folders(path: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith(".") and name.lower() not in MASKS)
        yield Path(folder)


def _cases(folder: Path) -> list[tuple[tuple[Path, ...], tuple[Path, ...]]]:
    """The images of a folder, each with its masks; images that share a mask are channels."""
    files, inner = image_files(folder), subfolder(folder, MASKS)
    within = inner is not None and bool(files) and not is_dicom(files[0])
    pairs = pair(files, image_files(inner), folder) if within and inner is not None else masks_beside(files)
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
