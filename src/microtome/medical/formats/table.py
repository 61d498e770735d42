"""What the cohort formats have in common: rows, names of files and folders, and the patient in a file name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from microtome.errors import DataError, OptionError, ReadError
from microtome.medical.readers.detached import without_voxel_files
from microtome.medical.readers.kind import SUFFIXES, stem_of, suffix_of

Split = Literal["train", "val", "test"]
IMAGE_SUFFIXES = frozenset(SUFFIXES) - {".npz"}
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "calibration": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "tuning": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "evaluation": "test",
}
# Patients in the names of well-known files: `person12_bacteria_46`, `IM-0115-0001`.
PATIENT_PATTERNS = (re.compile(r"person\d+"), re.compile(r"IM-\d+"))


@dataclass(frozen=True)
class Reference:
    """A column of a manifest that holds references.

    Attributes:
        task: what such references are for.
        cell: what a cell holds: a `file` beside the manifest, the number or name of a `class`, or a `number`.
    """

    task: str
    cell: Literal["file", "class", "number"]


# Of several such columns in one manifest, the first of these is the reference; the others are subgroups.
REFERENCES: Mapping[str, Reference] = {
    "mask": Reference("segmentation", "file"),
    "label": Reference("classification", "class"),
}


@dataclass(frozen=True)
class Row:
    """One examination as a format found it, with the patient's real name or number: private to this package."""

    patient: str
    image: tuple[Path, ...]
    mask: Path | None = None
    label: int | float | None = None
    index: int | None = None
    split: Split | None = None
    subgroups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All examinations of a cohort.

    `classes` is empty where there are no labels, or where the masks have to be looked at to know them.
    """

    task: str
    rows: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


CONVERT = "Convert images to NIfTI, NRRD or PNG."
# More class numbers than this are identifiers, intensities or the edges of a lossy picture, not classes.
MANY_CLASSES = 1000

PatientOf = Callable[[Path], str]


class CohortFormat(Protocol):
    """A module of `microtome.medical.formats`."""

    NAME: str
    LOOKS_LIKE: str

    def matches(self, path: Path) -> bool:
        """Whether a file or folder is laid out like this."""

    def rows(self, path: Path, patient_of: PatientOf | None) -> Table:
        """Find the examinations. `patient_of` is the user's own rule; None takes the format's."""


def patient_rule(pattern: str, root: Path) -> PatientOf:
    """The patient from a user's regular expression: its first group, or all that it matched.

    It is searched in the file's path below the cohort's folder, with `/` between folders.

    Raises:
        OptionError: not a regular expression; later, from the rule, a file that it does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"The patient pattern '{pattern}' is not a regular expression: {error}.") from error

    def rule(path: Path) -> str:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        found = expression.search(name)
        if found is None:
            raise OptionError(f"The patient pattern '{pattern}' matches nothing in {name}.", "Widen the pattern.")
        return str((found.group(1) if expression.groups else None) or found.group(0))

    return rule


def patient_in_name(path: Path) -> str:
    """The default rule: `personN` or `IM-NNNN` in the file name, or else the whole stem."""
    for pattern in PATIENT_PATTERNS:
        found = pattern.search(path.name)
        if found:
            return found.group(0)
    return stem_of(path)


def listing(folder: Path) -> list[Path]:
    """The visible entries of a folder, sorted by name.

    Raises:
        ReadError: the folder cannot be listed.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ReadError(f"{folder} cannot be listed: {error.strerror}.", "Check the path.") from error


def image_files(folder: Path) -> list[Path]:
    """The files of a folder whose suffix is that of an image."""
    files = [entry for entry in listing(folder) if suffix_of(entry) in IMAGE_SUFFIXES and entry.is_file()]
    return without_voxel_files(files)


def has_image(folder: Path) -> bool:
    """Whether a folder holds an image directly."""
    return folder.is_dir() and any(suffix_of(e) in IMAGE_SUFFIXES and e.is_file() for e in listing(folder))


def subfolder(folder: Path, names: Iterable[str]) -> Path | None:
    """The first subfolder that has one of the names, in upper or lower case."""
    if not folder.is_dir():
        return None
    present = {entry.name.lower(): entry for entry in listing(folder) if entry.is_dir()}
    return next((present[name] for name in names if name in present), None)


def split_folders(path: Path) -> list[tuple[Split | None, Path]]:
    """The train, val and test folders of a cohort, or the cohort's folder itself where it has none."""
    found = [(SPLIT_NAMES[e.name.lower()], e) for e in listing(path) if e.is_dir() and e.name.lower() in SPLIT_NAMES]
    return list(found) or [(None, path)]


def by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their stem.

    Raises:
        DataError: two files of one stem.
    """
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(stem_of(file), file)
        if other is not file:
            raise DataError(f"{other} and {file.name} have the same stem.", "Keep one of them.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ReadError: missing, or not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read as JSON.", "Copy the file again from its source.") from error
    if not isinstance(found, dict):
        raise ReadError(f"{path} is not a JSON object.", "Copy the file again from its source.")
    return found


def label_names(path: Path) -> tuple[str, ...]:
    """Class names from a dataset.json: `{"0": "background"}` (Decathlon) or `{"background": 0}` (nnU-Net).

    Raises:
        DataError: labels that are not numbered from 0.
    """
    labels = read_json(path).get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError(f"{path} names no labels.", 'Add "labels": {"0": "background", "1": …}.')
    try:
        numbered = all(str(key).isdigit() for key in labels)
        names = {int(k): str(v) for k, v in labels.items()} if numbered else {int(v): str(k) for k, v in labels.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} has labels that are not single numbers.", "Regions are not read.") from error
    if 0 not in names or min(names) < 0 or len(names) < 2:
        raise DataError(f"{path} must number its labels from 0, the background.", "Correct the labels.")
    return tuple(names.get(k, f"label {k}") for k in range(max(names) + 1))


def no_image(what: str, file: Path, folder: Path) -> ReadError:
    """The error of a mask or label whose image is not among those that were read."""
    stem = stem_of(file)
    for entry in listing(folder):
        name = entry.name.split(".")[0].removesuffix("_0000")
        alike = stem == name or stem.startswith((f"{name}_", f"{name}-", f"{name}."))
        if alike and entry.is_file() and suffix_of(entry) not in IMAGE_SUFFIXES:
            return ReadError(f"{entry}, the image of {file.name}, is of a kind that microtome does not read.", CONVERT)
    return ReadError(f"The {what} {file} has no image in {folder}.", f"Add the image or remove the {what}.")


def unread_hint(folders: Iterable[Path], hint: str) -> str:
    """What to do where nothing pairs up: not to rename files that were not looked at."""
    every = [entry for folder in folders if folder.is_dir() for entry in listing(folder) if entry.is_file()]
    endings = {suffix_of(entry) for entry in without_voxel_files(every)} - IMAGE_SUFFIXES - {""}
    return f"Files ending in {', '.join(sorted(endings))} are not read. {CONVERT}" if endings else hint


def count_of(number: int, one: str, many: str | None = None) -> str:
    """`1 case`, `2 cases`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
