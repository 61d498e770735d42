"""The layouts in which a cohort may come: one module each, asked in the order of `FORMATS`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from microtome.errors import DataError, ReadError
from microtome.medical.formats.leftover import endings_of
from microtome.plugins import find

if TYPE_CHECKING:
    from microtome.medical.formats.table import CohortFormat

FORMATS = {
    "medmnist": "microtome.medical.formats.medmnist",
    "boxes": "microtome.medical.formats.boxes",
    "manifest": "microtome.medical.formats.manifest",
    "decathlon": "microtome.medical.formats.decathlon",
    "image_masks": "microtome.medical.formats.image_masks",
    "class_folders": "microtome.medical.formats.class_folders",
    "masks_beside": "microtome.medical.formats.masks_beside",
    "dicom": "microtome.medical.formats.dicom",
    "images": "microtome.medical.formats.images",
}
# What a cohort of a format is called in a title.
TITLES = {
    "medmnist": "a MedMNIST file",
    "boxes": "images with boxes",
    "manifest": "a cohort by manifest",
    "decathlon": "an nnU-Net or Decathlon folder",
    "image_masks": "images with masks",
    "class_folders": "pictures in class folders",
    "dicom": "DICOM series",
    "images": "images",
}
REQUIRED = ("NAME", "LOOKS_LIKE", "matches", "rows")


def cohort_format(name: str) -> CohortFormat:
    """Return the format of a name, or the module of another package by its dotted path.

    Raises:
        OptionError: there is no such format, or the module is none.
    """
    return cast("CohortFormat", find(name, FORMATS, "cohort format", form="their_pkg.module", required=REQUIRED))


def title_of(name: str) -> str:
    """Return what a cohort of a format is called in a title; one of another package by the format's own name."""
    return TITLES.get(name, f"a cohort ({name})")


def find_format(path: Path, name: str | None = None) -> CohortFormat:
    """The format of that name, or the first that the folder looks like.

    Raises:
        ReadError: the path does not exist.
        OptionError: no format has that name.
        DataError: the folder looks like none of them.
    """
    named = None if name is None else cohort_format(name)
    if not path.exists():
        raise ReadError(f"{path} does not exist.", "Check the path of the cohort.")
    if named is not None:
        return named
    every = [cohort_format(one) for one in FORMATS]
    for one in every:
        if one.matches(path):
            return one
    looked = "; ".join(f"{one.NAME}: {one.LOOKS_LIKE}" for one in every)
    raise DataError(f"{path} looks like no cohort.", f"Looked for {looked}.{endings_of(path)}")
