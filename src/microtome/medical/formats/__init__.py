"""The layouts in which a cohort may come: one module each, asked in the order of `FORMATS`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from microtome.errors import DataError, OptionError, ReadError
from microtome.medical.formats import class_folders, decathlon, dicom, image_masks, images, manifest, medmnist
from microtome.medical.formats.table import Format

FORMATS = cast("tuple[Format, ...]", (medmnist, manifest, decathlon, image_masks, class_folders, dicom, images))


def find_format(path: Path, name: str | None = None) -> Format:
    """The format of that name, or the first that the folder looks like.

    Raises:
        ReadError: the path does not exist.
        OptionError: no format has that name.
        DataError: the folder looks like none of them.
    """
    names = [one.NAME for one in FORMATS]
    if name is not None and name not in names:
        raise OptionError(f"There is no cohort format '{name}'.", f"Choose one of: {', '.join(names)}.")
    if not path.exists():
        raise ReadError(f"{path} does not exist.", "Check the path of the cohort.")
    if name is not None:
        return FORMATS[names.index(name)]
    for one in FORMATS:
        if one.matches(path):
            return one
    looked = "; ".join(f"{one.NAME}: {one.LOOKS_LIKE}" for one in FORMATS)
    raise DataError(f"{path} looks like no cohort.", f"Looked for {looked}.")
