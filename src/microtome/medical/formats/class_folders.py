"""Class folders: `train|val|test/CLASS/*.jpeg`, or `CLASS/*.png` without a split."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import DataError, LabelError
from microtome.medical.formats.table import (
    PatientOf,
    Row,
    Table,
    has_image,
    image_files,
    listing,
    patient_in_name,
    split_folders,
)
from microtome.medical.readers.kind import is_dicom

NAME = "class_folders"
LOOKS_LIKE = "train, val or test folders of class folders with images, or class folders directly"


def matches(path: Path) -> bool:
    """At least one class folder with an image in it, below train, val or test or directly.

    Images beside the folders, or DICOM files in folders without train, val or test above, are something else: there
    the folders are patients or series.
    """
    if not path.is_dir() or has_image(path):
        return False
    folders = [(split, e) for split, folder in split_folders(path) for e in listing(folder) if has_image(e)]
    return bool(folders) and all(split is not None or not is_dicom(image_files(e)[0]) for split, e in folders)


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image. Classes are the folder names in the order of their characters, as common loaders have them.

    Raises:
        DataError: no images.
        LabelError: fewer than two class folders.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", f"Wanted: {LOOKS_LIKE}.")
    folders = [(split, e) for split, root in split_folders(path) for e in listing(root) if has_image(e)]
    classes = tuple(sorted({folder.name for _, folder in folders}))
    if not classes:
        raise DataError(f"{path} holds no class folders with images.", f"Wanted: {LOOKS_LIKE}.")
    if len(classes) == 1:
        raise LabelError(f"{path} has one class only, '{classes[0]}'.", "Classification needs at least two.")
    rule = patient_of or patient_in_name
    found = [
        Row(patient=rule(file), image=(file,), label=classes.index(folder.name), split=split)
        for split, folder in folders
        for file in image_files(folder)
    ]
    return Table("classification", tuple(found), classes)
