"""The bootstrap: against theory, simulation and a plain loop."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from microtome.clinical.classification import auroc
from microtome.clinical.statistics import (
    Replicates,
    bootstrap_mean,
    difference,
    required_cases,
    resample,
    resample_means,
)
from microtome.errors import OptionError
from microtome.types import Interval

ROUNDING = 1e-12
MONTE_CARLO = 0.06  # relative error of a 95 % bound from 2,000 resamples, about three standard errors


def interval_of(statistic: Callable[[np.ndarray], np.ndarray], groups: list, **options: int) -> Interval:
    return resample({"it": statistic}, groups, **options)["it"].interval()


def ids(n: int) -> list[str]:
    return [f"patient-{i:04d}" for i in range(n)]


@pytest.mark.parametrize("n", [8, 30, 400])
def test_interval_of_a_mean_is_students(n: int) -> None:
    values = stats.norm.ppf((np.arange(n) + 0.5) / n)  # symmetric, without noise
    found = bootstrap_mean(values + 3.0, ids(n), resamples=8000)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
    assert found.value == pytest.approx(3.0)
    assert 3.0 - found.low == pytest.approx(half, rel=0.1 if n < 10 else MONTE_CARLO)
    assert found.high - 3.0 == pytest.approx(half, rel=0.1 if n < 10 else MONTE_CARLO)


@pytest.mark.parametrize("patients", [12, 40])
def test_coverage_with_several_cases_per_patient(patients: int) -> None:
    random = np.random.default_rng(7)
    hits = 0
    for cohort in range(200):
        cases = random.integers(1, 5, patients)
        groups = np.repeat(np.arange(patients), cases)
        values = random.normal(size=patients)[groups] + 0.5 * random.normal(size=groups.size)
        found = bootstrap_mean(values, groups.tolist(), resamples=500, seed=cohort)
        hits += found.low <= 0.0 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_cases_of_one_patient_count_as_one() -> None:
    values = np.random.default_rng(0).normal(size=20)
    once = bootstrap_mean(values, ids(20))
    tenfold = bootstrap_mean(np.repeat(values, 10), np.repeat(ids(20), 10).tolist())
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high), abs=ROUNDING)


def test_undefined_values_are_left_out_and_counted() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan], [5.0, 2.0]])
    first, second = resample_means(values, ["a", "a", "b", "c"])
    assert (first.value, first.cases, first.groups) == (3.0, 3, 2)
    assert (second.value, second.cases, second.groups) == (2.0, 1, 1)
    assert second.interval() == Interval(2.0, None, None)
    assert bootstrap_mean(np.array([np.nan]), ["a"]) == Interval(None, None, None)
    assert bootstrap_mean(np.array([]), []) == Interval(None, None, None)


def test_seeded_and_independent_of_the_order_of_cases() -> None:
    random = np.random.default_rng(3)
    values, groups = random.normal(size=30), np.array(ids(10) * 3)
    found = bootstrap_mean(values, groups.tolist(), seed=5)
    order = random.permutation(30)
    shuffled = bootstrap_mean(values[order], groups[order].tolist(), seed=5)
    assert (shuffled.value, shuffled.low, shuffled.high) == pytest.approx(
        (found.value, found.low, found.high), abs=ROUNDING
    )
    assert bootstrap_mean(values, groups.tolist(), seed=6).low != found.low


def test_auroc_replicates_are_those_of_a_loop_over_patients() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 60)
    scores = np.round(random.random(60) + 0.3 * labels, 1)
    groups = random.integers(0, 25, 60)
    weights_seen = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        weights_seen.append(weights)
        return auroc(np.clip(scores, 0, 1), labels, weights=weights)

    samples = resample({"auroc": statistic}, groups.tolist(), resamples=50)["auroc"].samples
    drawn = weights_seen[1]
    for patient in np.unique(groups):
        assert (np.ptp(drawn[:, groups == patient], axis=1) == 0).all()  # all of a patient's cases, or none
    per_patient = np.stack([drawn[:, groups == patient][:, 0] for patient in np.unique(groups)], axis=1)
    assert (per_patient.sum(1) == len(np.unique(groups))).all()
    for row in range(50):
        rows = np.repeat(np.arange(60), drawn[row].astype(int))
        assert samples[row] == pytest.approx(roc_auc_score(labels[rows], np.clip(scores, 0, 1)[rows]), abs=ROUNDING)


def test_a_paired_difference_uses_the_same_resamples() -> None:
    random = np.random.default_rng(4)
    labels = np.arange(200) % 2
    parent = random.normal(size=200) + labels
    compressed = parent + 0.01 * random.normal(size=200)
    statistics = {
        "parent": lambda weights: auroc(parent, labels, weights=weights),
        "compressed": lambda weights: auroc(compressed, labels, weights=weights),
    }
    found = resample(statistics, ids(200))
    paired = difference(found["compressed"], found["parent"]).interval()
    alone = found["parent"].interval()
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)

    def gap(first: np.ndarray, second: np.ndarray, truth: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
        return auroc(second, truth, weights=weights) - auroc(first, truth, weights=weights)

    direct = interval_of(lambda w: gap(parent, compressed, labels, weights=w), ids(200))
    assert (direct.low, direct.high) == pytest.approx((paired.low, paired.high), abs=ROUNDING)


def test_auroc_interval_agrees_with_hanley_and_mcneil() -> None:
    random = np.random.default_rng(11)
    labels = np.arange(600) % 2
    scores = random.normal(size=600) + 1.2 * labels
    found = interval_of(lambda w: auroc(scores, labels, weights=w), ids(600))
    a, n = found.value, 300
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (n * n))
    # The closed form assumes exponential scores: it is within a tenth.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_resamples_without_one_class_are_left_out() -> None:
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9, 0.4, 0.3]), np.array([0, 0, 0, 0, 0, 1])
    statistic = {"auroc": lambda weights: auroc(scores, labels, weights=weights)}
    replicates = resample(statistic, ids(6))["auroc"]
    assert 0.2 < np.isnan(replicates.samples).mean() < 0.5
    assert replicates.interval().low is not None
    assert np.isfinite(replicates.interval().low)
    only_one = resample({"auroc": lambda w: auroc(scores, labels * 0, weights=w)}, ids(6))["auroc"]
    assert only_one.interval() == Interval(None, None, None)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(50) % 2
    scores = np.random.default_rng(0).random(50) + 0.2 * labels
    whole = interval_of(lambda w: auroc(scores, labels, weights=w), ids(50), resamples=200)
    monkeypatch.setattr("microtome.clinical.statistics.BLOCK", 50 * 17)
    assert interval_of(lambda w: auroc(scores, labels, weights=w), ids(50), resamples=200) == whole


def test_no_interval_when_most_resamples_are_undefined() -> None:
    samples = np.linspace(0.4, 0.6, 100)
    assert Replicates(0.5, np.where(np.arange(100) % 5 < 2, np.nan, samples), 9, 9).interval().low is not None
    mostly = Replicates(0.5, np.where(np.arange(100) % 5 < 3, np.nan, samples), 9, 9)
    assert mostly.interval() == Interval(0.5, None, None)
    assert mostly.sd is None


@pytest.mark.parametrize("n", [5, 50])
def test_sd_of_a_mean_is_the_sample_sd(n: int) -> None:
    values = np.random.default_rng(1).normal(size=n)
    assert resample_means(values[:, None], ids(n))[0].sd == pytest.approx(values.std(ddof=1), rel=MONTE_CARLO)


def test_required_cases() -> None:
    assert required_cases(0.02, 0.005) == 99
    assert required_cases(0.01, 0.005) == 25
    assert required_cases(0.0, 0.005) == 1
    with pytest.raises(OptionError, match="margin is 0"):
        required_cases(0.02, 0)


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="resamples is 0"):
        bootstrap_mean(np.ones(3), ids(3), resamples=0)
    with pytest.raises(OptionError, match="confidence is 95"):
        bootstrap_mean(np.ones(3), ids(3), confidence=95)
