"""Medical Segmentation Decathlon, and nnU-Net's raw folders: `dataset.json`, `imagesTr/`, `labelsTr/`."""

from __future__ import annotations

import re
from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.table import (
    PatientOf,
    Row,
    Split,
    Table,
    by_stem,
    count_of,
    image_files,
    label_names,
    no_image,
    read_json,
    unread_hint,
)
from microtome.medical.readers.kind import stem_of

NAME = "decathlon"
LOOKS_LIKE = "dataset.json with imagesTr and labelsTr (Medical Segmentation Decathlon, nnU-Net)"

CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net has one file per channel: case_0000, case_0001


def matches(path: Path) -> bool:
    """`dataset.json` and `imagesTr` are there."""
    return (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per labelled image; the patient is the case's name. `labelsTs`, where it exists, makes the test split.

    Raises:
        ReadError: dataset.json missing or broken, or a label without image.
        DataError: labels not numbered from 0, or no labelled image.
    """
    classes = label_names(path / "dataset.json")
    per_channel = "channel_names" in read_json(path / "dataset.json")
    pairs: list[tuple[Split | None, Path]] = [(None, path / "labelsTr")]
    if (path / "labelsTs").is_dir() and image_files(path / "labelsTs"):
        pairs = [("train", path / "labelsTr"), ("test", path / "labelsTs")]
    found: list[Row] = []
    unlabelled = 0
    for split, labels in pairs:
        folder = labels.with_name(labels.name.replace("labels", "images"))
        images = _images(folder, per_channel=per_channel)
        masks = by_stem(image_files(labels))
        for stem, mask in masks.items():
            if stem not in images:
                raise no_image("label", mask, folder)
            patient = patient_of(mask) if patient_of else stem
            found.append(Row(patient=patient, image=images[stem], mask=mask, split=split))
        unlabelled += len(images) - len(masks)
    if not found:
        hint = unread_hint((path / "imagesTr", path / "labelsTr"), "Labels belong into labelsTr, named like images.")
        raise DataError(f"{path} has no labelled image.", hint)
    notes = (f"{count_of(unlabelled, 'image')} without label left out.",) if unlabelled else ()
    return Table("segmentation", tuple(found), classes, notes)


def _images(folder: Path, *, per_channel: bool) -> dict[str, tuple[Path, ...]]:
    if not per_channel:
        return {stem: (file,) for stem, file in by_stem(image_files(folder)).items()}
    found: dict[str, tuple[Path, ...]] = {}
    for file in image_files(folder):  # sorted, so that the channels are in order
        stem = CHANNEL.sub("", stem_of(file))
        found[stem] = (*found.get(stem, ()), file)
    return found
