"""Scores of classified cases: AUROC, AUPRC, sensitivity, specificity, operating point.

Probabilities have shape (N, K): N cases, K classes; or (N,) or (N, 1): the probability of class 1. Labels are (N,)
class indices. With two classes, class 1 is the positive one and its probability is the score. With more, every metric
is the mean over the classes that occur, each against all others (macro, one-vs-rest).

Metrics take `weights`, which may have shape (N,), or (R, N) for R sets of weights: a bootstrap resample is a set of
weights, the number of times that each case was drawn. They return a float, or an array (R,). A set of weights that
leaves out one of the classes gives NaN: the metric is undefined. With `of`, only that class counts, against all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from microtome.errors import DataError, LabelError, OptionError
from microtome.types import Array

Binary = Callable[[Array, Array, Array], Array]


def auroc(
    probabilities: Array,
    labels: Array,
    *,
    threshold: float | None = None,
    weights: Array | None = None,
    of: int | None = None,
) -> float | Array:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties counting half.

    Mann-Whitney form (Hanley and McNeil, Radiology 1982). More than two classes: macro, one-vs-rest. The threshold is
    for metrics of decisions; it does not matter here.

    Raises:
        LabelError: labels do not fit the probabilities.
        DataError: a probability is not finite.
    """
    return _one_vs_rest(_binary_auroc, probabilities, labels, weights, of)


def auprc(
    probabilities: Array,
    labels: Array,
    *,
    threshold: float | None = None,
    weights: Array | None = None,
    of: int | None = None,
) -> float | Array:
    """Area under the precision-recall curve as average precision: Σ (Rₙ − Rₙ₋₁)·Pₙ over the distinct scores.

    No interpolation (Davis and Goadrich, ICML 2006, say why). More than two classes: macro, one-vs-rest. The threshold
    is for metrics of decisions; it does not matter here.

    Raises:
        LabelError: labels do not fit the probabilities.
        DataError: a probability is not finite.
    """
    return _one_vs_rest(_binary_auprc, probabilities, labels, weights, of)


def sensitivity(
    probabilities: Array,
    labels: Array,
    *,
    threshold: float | None = None,
    weights: Array | None = None,
    of: int | None = None,
) -> float | Array:
    """Share of the positive cases that are called positive, at the decision of `decide`.

    More than two classes: the mean over the classes of each one's share of cases given its own class.

    Raises:
        LabelError: labels do not fit the probabilities.
        DataError: a probability is not finite.
    """
    return _share_right(probabilities, labels, threshold, weights, of, positive=True)


def specificity(
    probabilities: Array,
    labels: Array,
    *,
    threshold: float | None = None,
    weights: Array | None = None,
    of: int | None = None,
) -> float | Array:
    """Share of the negative cases that are called negative, at the decision of `decide`.

    More than two classes: the mean over the classes of the share of other classes' cases not given this class.

    Raises:
        LabelError: labels do not fit the probabilities.
        DataError: a probability is not finite.
    """
    return _share_right(probabilities, labels, threshold, weights, of, positive=False)


def decide(probabilities: Array, *, threshold: float | None = None) -> Array:
    """The class that each case is given, shape (N,).

    Two classes with a threshold: class 1 where its probability is at least the threshold. Otherwise the class of the
    highest probability.

    Raises:
        DataError: a probability is not finite.
    """
    table = _table(probabilities)
    if table.shape[1] == 2 and threshold is not None:
        return np.asarray(table[:, 1] >= threshold, dtype=np.int64)
    return np.asarray(np.argmax(table, axis=1))


def operating_point(scores: Array, labels: Array, *, rule: str = "youden") -> float:
    """The threshold of a two-class test at which sensitivity + specificity − 1 is largest (Youden, Cancer 1950).

    Candidates lie midway between two neighbouring distinct scores: a small change of the scores, as compression makes,
    then flips as few decisions as possible. Of several best candidates, the one in the widest gap is taken. A case is
    positive where its score is at least the threshold. Fix it on the parent's tuning cases, never on evaluation cases.

    Args:
        scores: probability of class 1, shape (N,) (or probabilities of shape (N, 2)).
        labels: 0 or 1, shape (N,).
        rule: only `youden`.

    Raises:
        OptionError: unknown rule, or not two classes.
        LabelError: one class only, or labels do not fit the scores.
        DataError: a score is not finite.
    """
    if rule != "youden":
        raise OptionError(f"There is no operating-point rule {rule!r}.", "Use 'youden'.")
    table, labels = _checked(scores, labels)
    if table.shape[1] != 2:
        raise OptionError(f"An operating point needs two classes, not {table.shape[1]}.")
    if len(np.unique(labels)) < 2:
        raise LabelError(
            "The operating point needs cases of both classes, but only one class is there.",
            "Add tuning cases of the other class.",
        )
    values = np.unique(table[:, 1])
    if len(values) == 1:
        return float(values[0])
    low, high = values[:-1], values[1:]
    middle = low + (high - low) / 2
    middle = np.where(middle > low, middle, high)  # neighbouring floats have no middle
    positive, negative = (np.sort(table[labels == side, 1]) for side in (1, 0))
    youden = np.searchsorted(negative, middle) / negative.size - np.searchsorted(positive, middle) / positive.size
    best = np.flatnonzero(np.isclose(youden, youden.max(), rtol=0.0, atol=1e-12))  # 1/n apart unless equal
    return float(middle[best[np.argmax((high - low)[best])]])


def roc_points(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """The ROC curve of a two-class test: false-positive rates, true-positive rates and thresholds, from (0, 0).

    One point per distinct score, from high to low, after a first threshold of infinity; a case is positive where its
    score is at least the threshold.

    Raises:
        LabelError: one class only, or labels do not fit the scores.
        DataError: a score is not finite.
    """
    table, labels = _checked(scores, labels)
    if table.shape[1] != 2 or len(np.unique(labels)) < 2:
        raise LabelError("A ROC curve needs cases of two classes.", "Add cases of the other class.")
    thresholds = np.concatenate([[np.inf], np.unique(table[:, 1])[::-1]])
    positive, negative = (np.sort(table[labels == side, 1]) for side in (1, 0))
    false, true = (1.0 - np.searchsorted(side, thresholds) / side.size for side in (negative, positive))
    return false, true, thresholds


def _table(probabilities: Array) -> Array:
    """Probabilities as (N, K) with K ≥ 2, float64."""
    table = np.asarray(probabilities, dtype=np.float64)
    if not np.isfinite(table).all():
        raise DataError("A predicted probability is not a finite number.", "Look for NaN in the network or its input.")
    if table.ndim == 1:
        table = table[:, None]
    return np.concatenate([1.0 - table, table], axis=1) if table.shape[1] == 1 else table


def _checked(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    table, labels = _table(probabilities), np.asarray(labels)
    if labels.shape != table.shape[:1]:
        raise LabelError(f"There are {table.shape[0]} predictions but labels of shape {labels.shape}.")
    if labels.size and not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise LabelError(f"Labels are {labels.dtype} values.", "Use class indices.")
    if labels.size and not 0 <= labels.min() <= labels.max() < table.shape[1]:
        raise LabelError(
            f"Labels run from {labels.min()} to {labels.max()}, but there are {table.shape[1]} classes.",
            "Number the classes from 0.",
        )
    return table, labels.astype(np.int64)


def _one_vs_rest(
    binary: Binary, probabilities: Array, labels: Array, weights: Array | None, of: int | None
) -> float | Array:
    """Mean of a two-class metric over the classes that `_asked` names."""
    table, labels = _checked(probabilities, labels)
    rows = np.atleast_2d(np.ones(labels.size) if weights is None else np.asarray(weights, np.float64))
    classes = _asked(table, labels, of)
    with np.errstate(invalid="ignore"):
        each = [binary(table[:, k], labels == k, rows) for k in classes]
    result = np.mean(each, axis=0) if each else np.full(len(rows), np.nan)
    return float(result[0]) if weights is None or np.ndim(weights) == 1 else result


def _asked(table: Array, labels: Array, of: int | None) -> Sequence[int]:
    """The classes to average over."""
    if of is not None:
        return [of]
    return [1] if table.shape[1] == 2 else [int(k) for k in np.unique(labels)]


def _binary_auroc(scores: Array, positive: Array, weights: Array) -> Array:
    """Σ over positives of w·(weight of negatives below + half of those equal), over the product of both weights."""
    order = np.argsort(scores[~positive])
    negatives = scores[~positive][order]
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, ~positive][:, order], axis=1)], axis=1)
    ours = weights[:, positive]
    wins = below[:, np.searchsorted(negatives, scores[positive], "left")]
    wins += below[:, np.searchsorted(negatives, scores[positive], "right")]
    return np.asarray(np.einsum("rp,rp->r", ours, wins) / 2.0 / (ours.sum(1) * below[:, -1]))


def _binary_auprc(scores: Array, positive: Array, weights: Array) -> Array:
    """Weighted mean over positives of the precision at their own score; NaN without positives or negatives."""
    ours, above = weights[:, positive], []
    for side in (positive, ~positive):
        order = np.argsort(-scores[side])
        total = np.cumsum(weights[:, side][:, order], axis=1)
        total = np.concatenate([np.zeros((len(weights), 1)), total], axis=1)
        above.append(total[:, np.searchsorted(-scores[side][order], -scores[positive], "right")])
    true, false = above
    precision = np.where(ours > 0, true / np.where(true + false > 0, true + false, 1.0), 0.0)
    total = ours.sum(1)
    both = (total > 0) & (weights[:, ~positive].sum(1) > 0)
    return np.where(both, np.einsum("rp,rp->r", ours, precision) / total, np.nan)


def _share_right(
    probabilities: Array,
    labels: Array,
    threshold: float | None,
    weights: Array | None,
    of: int | None,
    *,
    positive: bool,
) -> float | Array:
    table, labels = _checked(probabilities, labels)
    decisions = decide(table, threshold=threshold)
    rows = np.atleast_2d(np.ones(labels.size) if weights is None else np.asarray(weights, np.float64))
    classes = _asked(table, labels, of)
    each = []
    for k in classes:
        asked = (labels == k) == positive
        right = asked & ((decisions == k) == positive)
        with np.errstate(invalid="ignore"):
            each.append((rows @ right.astype(float)) / (rows @ asked.astype(float)))
    result = np.mean(each, axis=0) if each else np.full(len(rows), np.nan)
    return float(result[0]) if weights is None or np.ndim(weights) == 1 else result
