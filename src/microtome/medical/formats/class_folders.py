"""Class folders: `train|val|test/CLASS/*.jpeg`, or `CLASS/*.png` without a split; masks may lie beside the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from microtome.errors import DataError, LabelError
from microtome.medical.formats.image_masks import IMAGES, MASKS, pair
from microtome.medical.formats.overlapping import labels_beside
from microtome.medical.formats.pairing import Pairs, masks_beside
from microtome.medical.formats.patients import FEW_FOLDERS, PATIENT_PATTERNS, PatientsInNames
from microtome.medical.formats.table import (
    SPLIT_NAMES,
    PatientOf,
    Row,
    Split,
    Table,
    count_of,
    has_image,
    image_files,
    listing,
    split_folders,
    subfolder,
)
from microtome.medical.readers.kind import is_dicom

NAME = "class_folders"
LOOKS_LIKE = "train, val or test folders of class folders with images, or class folders directly"

SUBGROUP = "class"  # where masks are the reference
NOBODY = frozenset((*SPLIT_NAMES, *IMAGES))  # folders that are no patients
MANY_FOLDERS = 20  # with masks in them: more are patients, not classes

Folder = tuple[Split | None, Path]


def matches(path: Path) -> bool:
    """At least one class folder with an image in it, below train, val or test or directly.

    Images beside the folders, DICOM files in folders without train, val or test above, folders that are called like
    patients, and those in which masks lie beside the images of one case each: these are patients or series.
    """
    if not path.is_dir() or has_image(path):
        return False
    folders = _folders(path)
    if any(split is None and is_dicom(files[0]) for split, e in folders if (files := image_files(e))):
        return False
    return bool(folders) and not _are_patients([folder for _, folder in folders])


def _are_patients(folders: Sequence[Path]) -> bool:
    """Whether folders are one for each patient, and not one for each class."""
    names = {folder.name for folder in folders}
    if all(any(pattern.search(name) for pattern in PATIENT_PATTERNS.values()) for name in names):
        return True
    if len(names) > 1 and all(map(_volumes_of_one_case, folders)):
        return True
    return len(names) > MANY_FOLDERS and any(any(masks_beside(image_files(one)).masks.values()) for one in folders)


def _volumes_of_one_case(folder: Path) -> bool:
    """Whether all files begin with the folder's name and go on with a word: `case7/case7_t1`, `case7/case7_seg`."""
    files = image_files(folder)
    return len(files) > 1 and all(re.fullmatch(re.escape(folder.name) + r"[_-][A-Za-z]\w*\..+", f.name) for f in files)


def _folders(path: Path) -> list[Folder]:
    """The class folders: those with images, and beside them those whose images lie in folders within."""
    every = [(split, e) for split, root in split_folders(path) for e in listing(root) if e.is_dir()]
    every = [(split, e) for split, e in every if e.name.lower() not in (*IMAGES, *MASKS)]
    if not any(split is not None or has_image(e) or _has_pairs(e) for split, e in every):
        return []
    return [(split, e) for split, e in every if has_image(e) or any(has_image(one) for one in listing(e))]


def _has_pairs(folder: Path) -> bool:
    return subfolder(folder, IMAGES) is not None and subfolder(folder, MASKS) is not None


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image. Classes are the folder names in the order of their characters, as common loaders have them.

    Images in folders within a class folder belong to it; each such folder is a patient. Where images have masks (beside
    them as `x_mask`, or in `images` and `masks` within the class folder), the task is segmentation, the class is a
    subgroup, and the table is also one of classification.

    Raises:
        DataError: no images.
        LabelError: fewer than two class folders.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", f"Wanted: {LOOKS_LIKE}.")
    folders = _folders(path)
    classes = tuple(sorted({folder.name for _, folder in folders}))
    if not classes:
        raise DataError(f"{path} holds no class folders with images.", f"Wanted: {LOOKS_LIKE}.")
    names = PatientsInNames(path)
    found: list[Row] = []
    places = [(split, folder, place, pairs) for split, folder in folders for place, pairs in _pairs(folder)]
    below = {place for _, folder, place, _ in places if place != folder and place.name.lower() not in NOBODY}
    for split, folder, place, pairs in places:
        rule = patient_of or (names.folder if place in below and len(below) >= FEW_FOLDERS else names)
        for image, masks in pairs.masks.items():
            row = Row(rule(image), (image,), label=classes.index(folder.name), split=split)
            found.append(_masked(row, masks, folder.name))
    return _table(found, classes, names.text, path)


def _pairs(folder: Path) -> list[tuple[Path, Pairs]]:
    """The images of a class folder with their masks, and the folder to which they belong."""
    images, masks = subfolder(folder, IMAGES), subfolder(folder, MASKS)
    if masks is not None and (images is not None or has_image(folder)):
        return [(folder, pair(image_files(images or folder), image_files(masks), images or folder))]
    below = [entry for entry in listing(folder) if has_image(entry)]
    return [(one, masks_beside(image_files(one))) for one in (folder, *below)]


def _masked(row: Row, masks: Sequence[Path], name: str) -> Row:
    if not masks:
        return replace(row, subgroups={SUBGROUP: name})
    return replace(row, mask=masks[0], further_masks=tuple(masks[1:]), subgroups={SUBGROUP: name})


def _table(found: Sequence[Row], classes: tuple[str, ...], patients: str, path: Path) -> Table:
    plain = tuple(replace(row, mask=None, further_masks=(), subgroups={}) for row in found)
    masks = frozenset(mask for row in found if row.mask for mask in (row.mask, *row.further_masks))
    by_class = Table("classification", plain, classes, told=masks, patients=patients)
    if not masks:
        if len(classes) == 1:
            raise LabelError(f"{path} has one class only, '{classes[0]}'.", "Classification needs at least two.")
        return by_class
    without = [row for row in found if row.mask is None]
    notes = ["The images have masks and classes: the task is segmentation, and the class is a subgroup."]
    if without:
        notes.append(f"{count_of(len(without), 'image')} without mask left out.")
    masked = tuple(row for row in found if row.mask is not None)
    told = frozenset(row.image[0] for row in without)
    also = by_class if len(classes) > 1 else None
    told |= {path / "dataset.json"}
    table = Table("segmentation", masked, (), tuple(notes), told=told, patients=patients, also=also)
    return labels_beside(table, path)
