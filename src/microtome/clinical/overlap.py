"""Overlap of label maps: Dice, agreement, voxel counts. Label maps hold integers from 0; any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from microtome.clinical.empty import UNDEFINED
from microtome.errors import GeometryError, LabelError
from microtome.types import Array

if TYPE_CHECKING:
    from microtome.clinical.masks import Masks

MAX_LABEL = 65_535  # what the widest label map that we write, uint16, can hold


class Counts(NamedTuple):
    """Voxels of each asked label, arrays of shape (labels,): in the prediction, in the reference, in both."""

    prediction: Array
    reference: Array
    both: Array


def check_label_map(array: Array, name: str) -> Array:
    """The label map itself, booleans as uint8.

    Raises:
        LabelError: not integers, or a value outside of 0…65,535.
    """
    array = np.asarray(array)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise LabelError(f"The {name} holds {array.dtype} values.", "Labels must be integers.")
    if array.dtype not in (np.uint8, np.uint16) and array.size and not 0 <= array.min() <= array.max() <= MAX_LABEL:
        raise LabelError(f"The {name} holds labels from {array.min()} to {array.max()}.", "Use labels from 0 to 65535.")
    return array


def check_pair(prediction: Array, reference: Array) -> tuple[Array, Array]:
    """Both label maps, checked by `check_label_map` and to have one shape.

    Raises:
        GeometryError: the shapes differ.
        LabelError: not a label map.
    """
    prediction, reference = check_label_map(prediction, "prediction"), check_label_map(reference, "reference")
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"The prediction has shape {prediction.shape}, the reference {reference.shape}.",
            "Resample the prediction to the grid of the reference.",
        )
    return prediction, reference


def count_labels(prediction: Array, reference: Array, *, labels: Sequence[int]) -> Counts:
    """Voxel counts of `labels`, all in one pass over the two label maps.

    Raises:
        GeometryError: the shapes differ.
        LabelError: not a label map.
    """
    prediction, reference = check_pair(prediction, reference)
    columns = len(labels) + 1  # column 0 holds every label that was not asked for
    column = np.zeros(MAX_LABEL + 1, np.int32)
    column[list(labels)] = np.arange(1, columns)
    cells = column[reference.ravel()] * columns + column[prediction.ravel()]
    table = np.bincount(cells, minlength=columns * columns).reshape(columns, columns)
    return Counts(table.sum(0)[1:], table.sum(1)[1:], np.diagonal(table)[1:])


def dice_from_counts(counts: Counts) -> Array:
    """Dice of each label, shape (labels,), from its voxel counts; NaN where both are empty."""
    total = counts.prediction + counts.reference
    return np.where(total > 0, 2.0 * counts.both / np.maximum(total, 1), UNDEFINED)


def dice(prediction: Array, reference: Array, *, label: int = 1) -> float:
    """Dice similarity coefficient of one label: 2·|P ∩ R| / (|P| + |R|), in voxels (Dice, Ecology 1945).

    Both empty: NaN. One empty: 0 (`microtome.clinical.empty`).

    Raises:
        GeometryError: the shapes differ.
        LabelError: not a label map.
    """
    return float(dice_from_counts(count_labels(prediction, reference, labels=[label]))[0])


def dice_of_masks(masks: Masks) -> float:
    """Dice of two masks that are not empty; see `dice`."""
    both = int(np.count_nonzero(masks.prediction & masks.reference))
    return 2.0 * both / (int(np.count_nonzero(masks.prediction)) + int(np.count_nonzero(masks.reference)))


def found_by_both(first: Array, second: Array, *, labels: Sequence[int]) -> tuple[int, int]:
    """Voxels of these labels that two label maps have in common, and the sum of those that each has.

    Raises:
        GeometryError: the shapes differ.
        LabelError: not a label map.
    """
    counts = count_labels(first, second, labels=labels)
    return int(counts.both.sum()), int(counts.prediction.sum() + counts.reference.sum())


def agreement(first: Array, second: Array) -> float:
    """Fraction of voxels to which two label maps give the same label, background included.

    Raises:
        GeometryError: the shapes differ.
        LabelError: not a label map.
    """
    first, second = check_pair(first, second)
    return float(np.mean(first == second))


def agreement_of_masks(first: Array, second: Array) -> float:
    """Fraction of voxels that lie in the same masks of two sets, bool (K, *S) each.

    Raises:
        GeometryError: the shapes differ.
    """
    check_pair(first, second)
    return float(np.mean((first == second).all(axis=0)))
