"""One case, all structures: equal to the single functions, whatever is absent."""

import numpy as np
import pytest

from microtome.clinical.overlap import dice
from microtome.clinical.segmentation import empty_structures, score_segmentation
from microtome.clinical.surface import hd95, nsd
from microtome.errors import GeometryError, LabelError

SPACING = (2.0, 1.0, 0.5)
LABELS = {1: "anterior", 2: "posterior", 5: "lesion", 9: "absent"}


def label_maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    reference = np.zeros((12, 14, 10), np.uint8)
    reference[2:8, 3:9, 2:7], reference[8:11, 3:9, 2:7] = 1, 2
    prediction = np.where(random.random(reference.shape) < 0.05, 0, reference).astype(np.uint8)
    prediction[0, 0, :3] = 5
    return prediction, reference


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64])
def test_equals_the_metrics_one_by_one(kind: type) -> None:
    prediction, reference = (array.astype(kind) for array in label_maps())
    scores = score_segmentation(prediction, reference, labels=LABELS, spacing=SPACING, tolerance=0.6)
    assert list(scores) == ["dice", "nsd", "hd95"]
    for label, name in LABELS.items():
        expected = {
            "dice": dice(prediction, reference, label=label),
            "nsd": nsd(prediction, reference, spacing=SPACING, tolerance=0.6, label=label),
            "hd95": hd95(prediction, reference, spacing=SPACING, label=label),
        }
        assert {metric: scores[metric][name] for metric in scores} == pytest.approx(expected, nan_ok=True, abs=0)


def test_absent_structures_follow_the_one_rule() -> None:
    prediction, reference = label_maps()
    scores = score_segmentation(prediction, reference, labels=LABELS, spacing=SPACING)
    diagonal = np.hypot(np.hypot(12 * 2.0, 14 * 1.0), 10 * 0.5)
    assert np.isnan([scores[metric]["absent"] for metric in scores]).all()
    assert [scores[metric]["lesion"] for metric in scores] == pytest.approx([0.0, 0.0, diagonal])
    missed = score_segmentation(reference, prediction, labels=LABELS, spacing=SPACING)
    assert [missed[metric]["lesion"] for metric in missed] == pytest.approx([0.0, 0.0, diagonal])
    assert empty_structures(reference, labels=LABELS) == ("lesion", "absent")


def test_the_background_can_be_scored_and_pictures_too() -> None:
    prediction, reference = (array[..., 3] for array in label_maps())
    scores = score_segmentation(prediction, reference, labels={0: "outside"}, spacing=SPACING[:2])
    assert scores["dice"]["outside"] == dice(prediction, reference, label=0)
    assert scores["hd95"]["outside"] == hd95(prediction, reference, spacing=SPACING[:2], label=0)


def test_the_label_maps_are_left_as_they_were() -> None:
    prediction, reference = label_maps()
    before = prediction.copy(), reference.copy()
    score_segmentation(prediction, reference, labels=LABELS, spacing=SPACING)
    np.testing.assert_array_equal(prediction, before[0])
    np.testing.assert_array_equal(reference, before[1])


def test_refusals_name_the_fault() -> None:
    prediction, reference = label_maps()
    with pytest.raises(GeometryError, match="prediction has shape"):
        score_segmentation(prediction[:-1], reference, labels=LABELS, spacing=SPACING)
    with pytest.raises(LabelError, match="float32"):
        score_segmentation(prediction.astype(np.float32), reference, labels=LABELS, spacing=SPACING)
