"""Reference masks of a cohort: which labels they hold, and what these count as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from microtome.errors import DataError, LabelError
from microtome.medical.read import WHITE, mask_and_notes, read_mask
from microtome.types import Array, Image

LOOK_MASKS = 32  # masks that are read to learn how many classes there are, where nothing names them
MANY_LABELS = 128  # unnamed labels beyond this are intensities; the largest public label sets have 117 structures


def classes_of_masks(masks: Sequence[Path]) -> tuple[str, ...]:
    """Class names where nothing names them, from masks spread over the cohort.

    Raises:
        LabelError: values that are no labels.
    """
    step = max(1, len(masks) // LOOK_MASKS)
    top = 1
    for mask in masks[::step]:
        found = _top_label(mask)
        if found > MANY_LABELS:
            raise LabelError(
                f"{mask} holds values up to {found}, which are hardly labels.",
                "Masks hold 0 and 255, or label numbers; JPEG spoils them. Name many labels in a dataset.json.",
            )
        top = max(top, found)
    return ("background", "foreground") if top == 1 else ("background", *(f"label {k}" for k in range(1, top + 1)))


def _top_label(mask: Path) -> int:
    """The largest label of a mask; a mask that cannot be read has its say when its case is used."""
    try:
        return int(read_mask(mask, None).max(initial=0))
    except DataError:
        return 0


def joined(masks: Sequence[Path], image: Image | None) -> tuple[Array, tuple[str, ...]]:
    """One label map of several masks of an image, each of which holds other structures or other spots of one; notes.

    Raises:
        LabelError: two of them give one voxel different labels; and what `read_mask` raises.
    """
    labels, notes = mask_and_notes(masks[0], image)
    for path in masks[1:]:
        other, more = mask_and_notes(path, image)
        notes = tuple(dict.fromkeys((*notes, *more)))
        if other.shape != labels.shape:
            raise LabelError(f"{path} and {masks[0].name} differ in shape.", "All masks of an image have its grid.")
        if ((labels != other) & (labels != 0) & (other != 0)).any():
            raise LabelError(f"{path} and {masks[0].name} give one voxel different labels.", "Merge them into one.")
        labels = np.maximum(labels, other)
    return labels, notes


def counted_as(labels: Array, numbers: Mapping[int, int], mask: Path, classes: Sequence[str]) -> Array:
    """A label map in which each label of the masks is the number of its class.

    Args:
        labels: as the mask holds them.
        numbers: label of the masks → number of the class.
        mask: the file, for the error.
        classes: names, for the error.

    Raises:
        LabelError: a label that is none of them.
    """
    white = [label for label in WHITE if label in numbers]
    if white and 1 not in numbers:  # where a mask holds nothing else, it is read as 1
        numbers = {**numbers, 1: numbers[white[0]]}
    present = np.flatnonzero(np.bincount(labels.ravel())) if labels.size else np.zeros(0, int)
    strange = [int(label) for label in present if int(label) not in numbers]
    if strange:
        known = ", ".join(f"{label} {classes[number]}" for label, number in sorted(numbers.items()))
        raise LabelError(
            f"{mask} holds the label {strange[0]}, but the labels are {known}.",
            "Correct the mask, or name all labels in a dataset.json beside the images.",
        )
    table = np.zeros(max(numbers, default=0) + 1, np.uint8 if max(numbers.values(), default=0) < 256 else np.int32)
    for label, number in numbers.items():
        table[label] = number
    mapped: Array = table[labels]
    return mapped
