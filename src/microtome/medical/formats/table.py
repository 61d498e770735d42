"""What the cohort formats have in common: rows, names of files and folders, and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from microtome.errors import DataError, ReadError
from microtome.medical.readers.detached import without_voxel_files
from microtome.medical.readers.kind import SUFFIXES, stem_of, suffix_of
from microtome.types import Boxes, Label

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


@dataclass(frozen=True)
class Reference:
    """A column of a manifest that holds references.

    Attributes:
        task: what such references are for.
        cell: what a cell holds: the `mask` or the `image` in a file beside the manifest, the number or name of a
            `class`, `numbers` joined by `;`, or `answers`: numbers that are 0 or 1. Both may also stand in columns
            of their own, called `value:NAME`.
    """

    task: str
    cell: Literal["mask", "image", "class", "numbers", "answers"]


# Of several such columns in one manifest, the first of these is the reference; the others are subgroups.
REFERENCES: Mapping[str, Reference] = {
    "mask": Reference("segmentation", "mask"),
    "label": Reference("classification", "class"),
    "findings": Reference("multi-label", "answers"),
    "value": Reference("regression", "numbers"),
    "target": Reference("image-to-image", "image"),
}


@dataclass(frozen=True)
class Row:
    """One examination as a format found it, with the patient's real name or number: private to this package.

    `further_masks` belong to the same reference: what any of them marks is marked.
    """

    patient: str
    image: tuple[Path, ...]
    mask: Path | None = None
    label: Label | None = None
    index: int | None = None
    split: Split | None = None
    subgroups: Mapping[str, str] = field(default_factory=dict)
    further_masks: tuple[Path, ...] = ()
    target: Path | None = None
    boxes: Boxes | None = None


@dataclass(frozen=True)
class Table:
    """All examinations of a cohort.

    Attributes:
        task: what the references are for.
        rows: the examinations.
        classes: empty where there are no labels, or where the masks have to be looked at to know them.
        notes: what a reader of results should know.
        unnamed: the numbers of classes whose names nobody gave: they are made of the number.
        told: files that make no case, and of which a note speaks, or that say something of all cases.
        patients: the rule by which cases were given to patients.
        also: the same examinations for another task, where they have references for both.
        regions: regions that overlap, with the labels that make up each, see `Pipeline`.
        regions_order: the label that each is written as.
    """

    task: str
    rows: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unnamed: frozenset[int] = frozenset()
    told: frozenset[Path] = frozenset()
    patients: str = ""
    also: Table | None = None
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_order: tuple[int, ...] | None = None


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


def exists(path: Path) -> bool:
    """Whether there is a file or folder; no name is too long, or not allowed, to be asked for."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


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


def no_image(what: str, file: Path, folder: Path, hint: str = "") -> ReadError:
    """The error of a mask or label whose image is not among those that were read."""
    stem = stem_of(file)
    for entry in listing(folder) if folder.is_dir() else ():
        name = entry.name.split(".")[0].removesuffix("_0000")
        alike = stem == name or stem.startswith((f"{name}_", f"{name}-", f"{name}."))
        if alike and entry.is_file() and suffix_of(entry) not in IMAGE_SUFFIXES:
            return ReadError(f"{entry}, the image of {file.name}, is of a kind that microtome does not read.", CONVERT)
    return ReadError(f"The {what} {file} has no image in {folder}.", hint or f"Add the image or remove the {what}.")


def unread_hint(folders: Iterable[Path], hint: str) -> str:
    """What to do where nothing pairs up: not to rename files that were not looked at."""
    every = [entry for folder in folders if folder.is_dir() for entry in listing(folder) if entry.is_file()]
    endings = {suffix_of(entry) for entry in without_voxel_files(every)} - IMAGE_SUFFIXES - {""}
    return f"Files ending in {', '.join(sorted(endings))} are not read. {CONVERT}" if endings else hint


def count_of(number: int, one: str, many: str | None = None) -> str:
    """`1 case`, `2 cases`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
