"""Images without labels: one file, or a folder of files."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import IMAGE_SUFFIXES, PatientOf, Row, Table, image_files, listing
from microtome.medical.readers.kind import suffix_of

NAME = "images"
LOOKS_LIKE = "one image, or a folder of images, without labels"


def matches(path: Path) -> bool:
    """An image file, or a folder of images without folders beside them, which might be masks."""
    if path.is_file():
        return suffix_of(path) in IMAGE_SUFFIXES
    return bool(image_files(path)) and not any(entry.is_dir() for entry in listing(path))


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per file.

    Raises:
        DataError: no images.
    """
    files = [path] if path.is_file() else image_files(path)
    if not files:
        raise DataError(f"{path} holds no images.", f"Wanted: {LOOKS_LIKE}.")
    names = PatientsInNames(files[0].parent)
    found = tuple(Row(patient=(patient_of or names)(file), image=(file,)) for file in files)
    return Table("segmentation", found, patients=names.text)
