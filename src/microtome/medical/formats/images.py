"""Images without labels: one file, or a folder of files."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import DataError
from microtome.medical.channel_files import by_case, complete
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import IMAGE_SUFFIXES, PatientOf, Row, Table, image_files, listing
from microtome.medical.readers.kind import SUFFIXES, suffix_of

NAME = "images"
LOOKS_LIKE = "one image, or a folder of images, without labels"


def matches(path: Path) -> bool:
    """An image file, or a folder of images without folders beside them, which might be masks."""
    if path.is_file():
        return suffix_of(path) in IMAGE_SUFFIXES
    return bool(image_files(path)) and not any(entry.is_dir() for entry in listing(path))


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per file; nnU-Net's volumes of single channels (`case_0000`, `case_0001`) are one image per case.

    Raises:
        DataError: no images.
    """
    files = [path] if path.is_file() else image_files(path)
    if not files:
        raise DataError(f"{path} holds no images.", f"Wanted: {LOOKS_LIKE}.")
    names = PatientsInNames(files[0].parent)
    found = tuple(Row(patient=(patient_of or names)(image[0]), image=image) for image in _images(files))
    return Table("segmentation", found, patients=names.text)


def _images(files: list[Path]) -> list[tuple[Path, ...]]:
    """The files of each image: several where all are channels of volumes, equally many in each of several cases."""
    if any(SUFFIXES.get(suffix_of(file)) == "picture" for file in files):
        return [(file,) for file in files]
    cases = by_case(files)
    images = [complete(channels) for channels in cases.values()]
    counts = {0 if image is None else len(image) for image in images}
    if (
        len(images) > 1
        and len(counts) == 1
        and counts.isdisjoint({0, 1})
        and sum(map(len, cases.values())) == len(files)
    ):
        return [image for image in images if image is not None]
    return [(file,) for file in files]
