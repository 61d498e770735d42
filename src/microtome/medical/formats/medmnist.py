"""MedMNIST: one npz file with `train_images`, `train_labels`, and the same for `val` and `test`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from microtome.errors import DataError, LabelError, OptionError
from microtome.medical.formats.table import MANY_CLASSES, PatientOf, Row, Split, Table, listing
from microtome.medical.readers import arrays
from microtome.medical.readers.arrays import SPLITS
from microtome.types import Array

NAME = "medmnist"
LOOKS_LIKE = "a .npz file with train_images and train_labels, or a folder with one such file"


def matches(path: Path) -> bool:
    """An npz file, or a folder that holds exactly one."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() == ".npz" else None
    found = [entry for entry in listing(path) if entry.suffix.lower() == ".npz"]
    return found[0] if len(found) == 1 else None


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image; the official splits; the file knows no patients, so every image counts as one.

    Raises:
        ReadError: truncated or not an npz file.
        DataError: arrays are missing or do not fit together.
        LabelError: several labels per image.
        OptionError: a patient pattern, which has no file names to work on.
    """
    file = _file(path)
    if file is None:
        raise DataError(f"{path} holds no single npz file.", f"Wanted: {LOOKS_LIKE}.")
    if patient_of is not None:
        raise OptionError("MedMNIST files hold no file names, so a patient pattern has nothing to match.", "Drop it.")
    shapes = arrays.shapes(file)
    splits: list[Split] = [split for split in SPLITS if f"{split}_images" in shapes]
    if not splits:
        raise DataError(f"{file} holds none of train_images, val_images, test_images.", f"Wanted: {LOOKS_LIKE}.")
    found: list[Row] = []
    for split in splits:
        count = _count(file, shapes, split)
        labels = _labels(file, split) if f"{split}_labels" in shapes else [None] * count
        if len(labels) != count:
            raise DataError(f"{file} has {count} {split}_images but {len(labels)} {split}_labels.", "Repair the file.")
        start = len(found)
        found += [
            Row(patient=f"{split} {k}", image=(file,), label=label, index=start + k, split=split)
            for k, label in enumerate(labels)
        ]
    top = max((row.label for row in found if isinstance(row.label, int)), default=-1)
    note = "The file holds no patients: every image counts as a patient of its own."
    everyone = range(top + 1)
    names, rule = tuple(map(str, everyone)), "every image is a patient of its own"
    return Table("classification", tuple(found), names, (note, *_unread(shapes)), frozenset(everyone), patients=rule)


def _unread(shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """A note on arrays that are no images or labels of a split."""
    known = {f"{split}_{what}" for split in SPLITS for what in ("images", "labels")}
    others = sorted(set(shapes) - known)
    return (f"The npz file holds more than is read: {', '.join(others)}.",) if others else ()


def _count(file: Path, shapes: dict[str, tuple[int, ...]], split: str) -> int:
    shape = shapes[f"{split}_images"]
    if len(shape) not in (3, 4, 5):
        raise DataError(
            f"{file} has {split}_images of shape {shape}.", "Wanted: (N, H, W), (N, H, W, C), (N, I, J, K)."
        )
    return shape[0]


def _labels(file: Path, split: str) -> list[int | None]:
    labels: Array = arrays.load(file, f"{split}_labels")
    if labels.size != len(labels):
        raise LabelError(f"{file} has {labels.shape[-1]} labels per image.", "Multi-label sets are not read; keep one.")
    flat = labels.reshape(-1)
    whole = np.array_equal(flat, np.rint(flat))
    if not whole or (flat.size and not 0 <= flat.min() <= flat.max() < MANY_CLASSES):
        raise LabelError(f"{file} has {split}_labels that are not class numbers.", "Classes count from 0.")
    return [int(label) for label in flat]
