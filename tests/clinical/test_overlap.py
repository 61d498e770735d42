"""Dice by hand; its invariants; refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from microtome.clinical.overlap import agreement, count_labels, dice
from microtome.errors import GeometryError, LabelError

MASKS = arrays(np.uint8, (4, 5), elements=st.integers(0, 2))


def test_dice_by_hand() -> None:
    reference = np.array([[1, 1, 1, 1], [0, 0, 0, 2]])
    prediction = np.array([[0, 1, 1, 1], [1, 1, 0, 2]])
    assert dice(prediction, reference, label=1) == 2 * 3 / (5 + 4)
    assert dice(prediction, reference, label=2) == 1.0


def test_absent_structures() -> None:
    empty, full = np.zeros((3, 3), np.uint8), np.ones((3, 3), np.uint8)
    assert np.isnan(dice(empty, empty))
    assert dice(full, empty) == 0.0
    assert dice(empty, full) == 0.0


def test_counts_all_labels_in_one_pass_and_ignores_others() -> None:
    prediction = np.array([0, 1, 2, 7, 7, 300])
    reference = np.array([0, 1, 7, 7, 2, 300])
    counts = count_labels(prediction, reference, labels=[7, 300, 5])
    assert counts.prediction.tolist() == [2, 1, 0]
    assert counts.reference.tolist() == [2, 1, 0]
    assert counts.both.tolist() == [1, 1, 0]


def test_boolean_masks_are_label_maps() -> None:
    assert dice(np.array([True, True, False]), np.array([1, 0, 0])) == pytest.approx(2 / 3)


def test_agreement_counts_the_background() -> None:
    assert agreement(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])) == 0.5


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"\(2, 2\), the reference \(2, 3\)"):
        dice(np.zeros((2, 2), int), np.zeros((2, 3), int))


@pytest.mark.parametrize("values", [np.array([0.0, 1.0]), np.array([-1, 0]), np.array([0, 70_000])])
def test_what_is_no_label_map_is_refused(values: np.ndarray) -> None:
    with pytest.raises(LabelError, match="prediction"):
        dice(values, np.array([0, 1]))


@given(MASKS, MASKS)
def test_dice_is_symmetric_and_a_fraction(first: np.ndarray, second: np.ndarray) -> None:
    value = dice(first, second)
    np.testing.assert_equal(value, dice(second, first))
    assert np.isnan(value) or 0.0 <= value <= 1.0


@given(MASKS)
def test_a_present_structure_agrees_with_itself(mask: np.ndarray) -> None:
    assert not (mask == 1).any() or dice(mask, mask) == 1.0
