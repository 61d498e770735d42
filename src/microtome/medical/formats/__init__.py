"""The layouts in which a cohort may come: one module each, asked in the order of `FORMATS`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from microtome.errors import DataError, OptionError, ReadError

if TYPE_CHECKING:
    from microtome.medical.formats.table import CohortFormat

FORMATS = {
    "medmnist": "microtome.medical.formats.medmnist",
    "manifest": "microtome.medical.formats.manifest",
    "decathlon": "microtome.medical.formats.decathlon",
    "image_masks": "microtome.medical.formats.image_masks",
    "class_folders": "microtome.medical.formats.class_folders",
    "dicom": "microtome.medical.formats.dicom",
    "images": "microtome.medical.formats.images",
}
REQUIRED = ("NAME", "LOOKS_LIKE", "matches", "rows")


def cohort_format(name: str) -> CohortFormat:
    """Return the format of a name, or the module of another package by its dotted path.

    Raises:
        OptionError: there is no such format, or the module is none.
    """
    if name not in FORMATS and "." not in name:
        raise OptionError(
            f"There is no cohort format '{name}'.",
            f"Choose one of: {', '.join(FORMATS)}; or name a module: their_pkg.module.",
        )
    try:
        module = importlib.import_module(FORMATS.get(name, name))
    except ImportError as error:
        raise OptionError(
            f"The cohort format {name} cannot be imported: {error}.", "Install the package it is in."
        ) from error
    missing = [wanted for wanted in REQUIRED if not hasattr(module, wanted)]
    if missing:
        what = f"{name} is no cohort format: it has no {', '.join(missing)}."
        raise OptionError(what, "`microtome.medical.formats.table` says what a format defines.")
    return cast("CohortFormat", module)


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
    raise DataError(f"{path} looks like no cohort.", f"Looked for {looked}.")
