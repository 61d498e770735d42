"""AUROC, AUPRC and operating points: by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from microtome.clinical.classification import (
    auprc,
    auroc,
    decide,
    operating_point,
    roc_points,
    sensitivity,
    specificity,
)
from microtome.errors import DataError, LabelError, OptionError

EXACT = 1e-12  # the same float64 arithmetic in another order


def cohort(seed: int, n: int = 80, classes: int = 2, steps: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, and labels that they say something about."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    table = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * steps) / steps
    return table / table.sum(1, keepdims=True), labels


def test_by_hand() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])
    assert auroc(scores, labels) == (1 + 0.5 + 1 + 1) / 4
    # At 0.8: precision 1, recall 1/2. At 0.4: precision 2/3, recall 1.
    assert auprc(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=EXACT)
    assert sensitivity(scores, labels, threshold=0.4) == 1.0
    assert specificity(scores, labels, threshold=0.4) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_binary_with_weights_equals_scikit_learn(seed: int) -> None:
    table, labels = cohort(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (30, labels.size)).astype(float)
    ours_roc, ours_pr = auroc(table, labels, weights=weights), auprc(table, labels, weights=weights)
    for row, weight in enumerate(weights):
        expected = metrics.roc_auc_score(labels, table[:, 1], sample_weight=weight)
        assert ours_roc[row] == pytest.approx(expected, abs=EXACT)
        expected = metrics.average_precision_score(labels, table[:, 1], sample_weight=weight)
        assert ours_pr[row] == pytest.approx(expected, abs=EXACT)
    assert auroc(table, labels) == pytest.approx(metrics.roc_auc_score(labels, table[:, 1]), abs=EXACT)
    assert auroc(table[:, 1], labels) == auroc(table[:, 1:], labels) == auroc(table, labels)


@pytest.mark.parametrize("seed", range(3))
def test_macro_one_vs_rest_equals_scikit_learn(seed: int) -> None:
    table, labels = cohort(seed, classes=4)
    expected = metrics.roc_auc_score(labels, table, multi_class="ovr", average="macro")
    assert auroc(table, labels) == pytest.approx(expected, abs=EXACT)
    expected = metrics.average_precision_score(np.eye(4)[labels], table, average="macro")
    assert auprc(table, labels) == pytest.approx(expected, abs=EXACT)
    expected = metrics.recall_score(labels, table.argmax(1), average="macro")
    assert sensitivity(table, labels) == pytest.approx(expected, abs=EXACT)
    confusion = metrics.multilabel_confusion_matrix(labels, table.argmax(1))
    expected = np.mean([c[0, 0] / c[0].sum() for c in confusion])
    assert specificity(table, labels, threshold=0.3) == pytest.approx(expected, abs=EXACT)


def test_a_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    table, labels = cohort(0, classes=3)
    keep = labels != 2
    expected = np.mean([metrics.roc_auc_score(labels[keep] == k, table[keep, k]) for k in (0, 1)])
    assert auroc(table[keep], labels[keep]) == pytest.approx(expected, abs=EXACT)


def test_one_class_only_is_undefined() -> None:
    scores, labels = np.array([0.2, 0.7]), np.array([1, 1])
    assert np.isnan([auroc(scores, labels), auprc(scores, labels), specificity(scores, labels, threshold=0.5)]).all()
    assert sensitivity(scores, labels, threshold=0.5) == 0.5
    assert np.isnan([auroc(np.zeros((0, 2)), np.zeros(0, int)), auroc(np.zeros((0, 3)), np.zeros(0, int))]).all()


def test_a_resample_without_one_class_is_undefined() -> None:
    scores, labels = np.array([0.1, 0.9, 0.4]), np.array([0, 1, 0])
    weights = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]])
    for metric in (auroc, auprc):
        values = metric(scores, labels, weights=weights)
        assert np.isnan(values).tolist() == [False, True, True]


def test_operating_point_is_midway_in_the_widest_gap() -> None:
    labels = np.array([0, 0, 1, 1])
    assert operating_point(np.array([0.1, 0.2, 0.6, 0.9]), labels) == pytest.approx(0.4)
    # Youden's index is 1/2 between 0.1 and 0.2 (gap 0.1) and between 0.3 and 0.8 (gap 0.5).
    assert operating_point(np.array([0.1, 0.3, 0.2, 0.8]), labels) == pytest.approx(0.55)
    assert operating_point(np.array([0.5, 0.5, 0.5, 0.5]), labels) == 0.5


@pytest.mark.parametrize("low", [0.3, np.nextafter(0.3, 1.0)])  # the middle is rounded up in one, down in the other
def test_operating_point_separates_neighbouring_floats(low: float) -> None:
    high = np.nextafter(low, 1.0)
    threshold = operating_point(np.array([low, high]), np.array([0, 1]))
    assert low < threshold <= high


@pytest.mark.parametrize("seed", range(4))
def test_operating_point_reaches_the_best_youden_index(seed: int) -> None:
    table, labels = cohort(seed)
    threshold = operating_point(table, labels)
    found = sensitivity(table, labels, threshold=threshold) + specificity(table, labels, threshold=threshold)
    false, true, _ = metrics.roc_curve(labels, table[:, 1])
    assert found - 1 == pytest.approx(np.max(true - false), abs=EXACT)


def test_operating_point_refusals() -> None:
    with pytest.raises(LabelError, match="only one class"):
        operating_point(np.array([0.1, 0.2]), np.array([1, 1]))
    with pytest.raises(OptionError, match="no operating-point rule 'best'"):
        operating_point(np.array([0.1, 0.2]), np.array([0, 1]), rule="best")
    with pytest.raises(OptionError, match="two classes, not 3"):
        operating_point(np.eye(3), np.arange(3))


def test_a_roc_curve_needs_both_classes() -> None:
    with pytest.raises(LabelError, match="cases of two classes"):
        roc_points(np.array([0.1, 0.2]), np.array([0, 0]))


def test_roc_points_equal_scikit_learn() -> None:
    table, labels = cohort(1)
    expected = metrics.roc_curve(labels, table[:, 1], drop_intermediate=False)
    for ours, theirs in zip(roc_points(table[:, 1], labels), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


def test_decisions() -> None:
    assert decide(np.array([0.2, 0.4, 0.6]), threshold=0.4).tolist() == [0, 1, 1]
    assert decide(np.array([[0.6, 0.4], [0.3, 0.7]])).tolist() == [0, 1]
    assert decide(np.array([[0.2, 0.5, 0.3]]), threshold=0.1).tolist() == [1]


def test_bad_predictions_and_labels_are_refused() -> None:
    with pytest.raises(DataError, match="not a finite number"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(LabelError, match="3 predictions"):
        auroc(np.array([0.1, 0.2, 0.3]), np.array([0, 1]))
    with pytest.raises(LabelError, match="there are 2 classes"):
        auroc(np.array([0.1, 0.2]), np.array([0, 2]))
    with pytest.raises(LabelError, match="float64"):
        auroc(np.array([0.1, 0.2]), np.array([0.0, 1.0]))
