"""Medical Segmentation Decathlon, and nnU-Net's raw folders: `dataset.json`, `imagesTr/`, `labelsTr/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microtome.errors import DataError, ReadError
from microtome.medical.channel_files import CHANNEL, by_case, complete
from microtome.medical.formats.dataset_json import channels, listed_cases, read_json
from microtome.medical.formats.overlapping import with_labels
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import (
    PatientOf,
    Row,
    Split,
    Table,
    by_stem,
    count_of,
    image_files,
    no_image,
    unread_hint,
)
from microtome.medical.readers.kind import stem_of

NAME = "decathlon"
LOOKS_LIKE = "dataset.json with imagesTr and labelsTr (Medical Segmentation Decathlon, nnU-Net)"


def matches(path: Path) -> bool:
    """`dataset.json` and `imagesTr` are there."""
    return (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per labelled image. `labelsTs`, where it exists, makes the test split.

    An image is a file of the label's name, or nnU-Net's files of its channels: `case_0000`, `case_0001`.

    Raises:
        ReadError: dataset.json missing or broken, or a label without image, or without one of its channels.
        DataError: labels not numbered from 0, or no labelled image.
    """
    listed = path / "dataset.json"
    named, count = with_labels(Table("segmentation", ()), listed), channels(listed)
    pairs: list[tuple[Split | None, Path]] = [(None, path / "labelsTr")]
    if (path / "labelsTs").is_dir() and image_files(path / "labelsTs"):
        pairs = [("train", path / "labelsTr"), ("test", path / "labelsTs")]
    found: list[Row] = []
    without: list[Path] = []
    who = PatientsInNames(path)
    for split, labels in pairs:
        folder = labels.with_name(labels.name.replace("labels", "images"))
        masks = by_stem(image_files(labels)) if labels.is_dir() else {}
        files = image_files(folder) if folder.is_dir() else []
        images = _Images(by_stem(files), by_case(files), folder, count)
        taken: set[Path] = set()
        for stem, mask in masks.items():
            image = images.of(stem, mask)
            taken.update(image)
            found.append(Row((patient_of or who)(mask), image, mask, split=split))
        without += [image for image in files if image not in taken]
    if not found:
        hint = unread_hint((path / "imagesTr", path / "labelsTr"), "Labels belong into labelsTr, named like images.")
        raise DataError(f"{path} has no labelled image.", hint)
    notes = _notes(without, read_json(listed), found)
    found = _with_validation(found, read_json(listed))
    told = frozenset({*without, listed})
    return replace(named, rows=tuple(found), notes=notes, told=told, patients=who.text)


@dataclass(frozen=True)
class _Images:
    """The images of a folder: whole files by their stem, channels by the name of their case."""

    whole: Mapping[str, Path]
    channels: Mapping[str, dict[int, Path]]
    folder: Path
    count: int | None

    def of(self, stem: str, mask: Path) -> tuple[Path, ...]:
        """The image of a label.

        Raises:
            ReadError: there is none, or not every channel of it.
        """
        if stem in self.whole:
            return (self.whole[stem],)
        channels = self.channels.get(stem)
        if channels is None:
            hint = f"Add {stem} or its channels {stem}_0000, …, or remove the label."
            raise no_image("label", mask, self.folder, hint)
        files = complete(channels)
        if files is None or (self.count is not None and len(files) != self.count):
            wanted = "" if self.count is None else f"; dataset.json names {count_of(self.count, 'channel')}"
            numbers = ", ".join(f"{number:04d}" for number in sorted(channels))
            raise ReadError(f"The image of {mask} has the channels {numbers}{wanted}.", "Add or remove files.")
        return files


def _notes(without: Sequence[Path], content: Mapping[str, object], found: Sequence[Row]) -> tuple[str, ...]:
    cases = {_case(stem_of(image)) for image in without}
    notes = [f"{count_of(len(cases), 'image')} without label left out."] if without else []
    there = {stem_of(row.mask) for row in found if row.mask is not None}
    listed = {name for split in ("training", "validation") for name in listed_cases(content, split)}
    absent = {name for name in listed if name not in there and _case(name) not in there}
    if absent:
        notes.append(f"{count_of(len(absent), 'case')} that dataset.json lists for training not there, or unlabelled.")
    return tuple(notes)


def _case(stem: str) -> str:
    match = CHANNEL.fullmatch(stem)
    return match.group(1) if match else stem


def _with_validation(found: list[Row], content: Mapping[str, object]) -> list[Row]:
    """The rows, those that dataset.json lists for validation in the split of that name."""
    listed = listed_cases(content, "validation")
    if not any(_stem(row) in listed for row in found):
        return found
    return [replace(row, split="val" if _stem(row) in listed else row.split or "train") for row in found]


def _stem(row: Row) -> str:
    return "" if row.mask is None else stem_of(row.mask)
