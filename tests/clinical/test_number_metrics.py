"""Errors of numbers: by hand and against scikit-learn; constant references, missing ones, one patient."""

import numpy as np
import pytest
from sklearn import metrics

from microtome.clinical.numbers import NumbersCase, concordance, mae, nmae, rmse, summarise_numbers

EXACT = 1e-10  # the same float64 arithmetic in another order


def cohort(n: int = 60, noise: float = 0.1, worse: float = 0.0, patients: int = 60) -> list[NumbersCase]:
    random = np.random.default_rng(2)
    truth = np.stack([random.normal(60, 10, n), random.normal(0.5, 0.1, n)], axis=1)
    before = truth + random.normal(size=truth.shape) * [4.0, 0.04]
    after = before + random.normal(size=truth.shape) * [noise, noise / 100] + [worse, 0.0]
    return [
        NumbersCase(f"c{i}", f"p{i % patients}", before[i].tolist(), after[i].tolist(), tuple(truth[i].tolist()))
        for i in range(n)
    ]


def test_by_hand() -> None:
    predicted, reference = np.array([1.0, 2.0, 6.0]), np.array([1.0, 4.0, 4.0])
    assert mae(predicted, reference) == pytest.approx(4 / 3)
    assert nmae(predicted, reference, spread=2.0) == pytest.approx(2 / 3)
    assert rmse(predicted, reference) == pytest.approx(np.sqrt(8 / 3))
    # means 3 and 3, variances 14/3 and 2, covariance (−2·−2 + −1·1 + 3·1)/3 = 2
    assert concordance(predicted, reference) == pytest.approx(2 * 2 / (14 / 3 + 2))


def test_against_scikit_learn_with_weights() -> None:
    random = np.random.default_rng(0)
    predicted, reference, weights = random.normal(size=50), random.normal(size=50), random.integers(0, 4, (3, 50)) * 1.0
    for ours, theirs in ((mae, metrics.mean_absolute_error), (rmse, metrics.root_mean_squared_error)):
        expected = [theirs(reference, predicted, sample_weight=row) for row in weights]
        assert ours(predicted, reference, weights=weights) == pytest.approx(expected, abs=EXACT)
    repeated = [np.repeat(np.stack([predicted, reference]), row.astype(int), axis=1) for row in weights]
    expected = [concordance(*pair) for pair in repeated]
    assert concordance(predicted, reference, weights=weights) == pytest.approx(expected, abs=EXACT)


def test_concordance_does_not_mind_a_far_away_mean_and_knows_no_constant() -> None:
    random = np.random.default_rng(1)
    predicted, reference = random.normal(size=40), random.normal(size=40)
    assert concordance(predicted + 1e6, reference + 1e6) == pytest.approx(concordance(predicted, reference), abs=1e-6)
    assert np.isnan(concordance(predicted, np.full(40, 3.3)))


def test_the_summary_has_each_number_and_the_mean_over_numbers() -> None:
    cases = cohort()
    result = summarise_numbers(cases, ("age", "share"), resamples=100)
    found = result["parent"]["metrics"]
    truth, before = np.array([c.label for c in cases]), np.array([c.parent for c in cases])
    each = metrics.mean_absolute_error(truth, before, multioutput="raw_values")
    assert [found["mae/age"]["value"], found["mae/share"]["value"]] == pytest.approx(each.tolist(), abs=EXACT)
    assert found["nmae"]["value"] == pytest.approx(np.mean(each / truth.std(axis=0)), abs=EXACT)
    assert result["counts"]["spread"]["age"] == pytest.approx(truth[:, 0].std())
    assert result["verdict"]["non_inferior"] is True
    assert result["agreement"]["value"] == 1.0


def test_a_bias_beyond_the_margin_is_inferior_in_either_unit() -> None:
    cases = cohort(worse=6.0)
    relative = summarise_numbers(cases, ("age", "share"), metric="nmae/age", resamples=200)["verdict"]
    absolute = summarise_numbers(cases, ("age", "share"), metric="mae/age", margin=0.5, resamples=200)["verdict"]
    assert relative["non_inferior"] is False
    assert absolute["non_inferior"] is False
    generous = summarise_numbers(cohort(noise=0.5), ("age", "share"), metric="mae/age", margin=3.0, resamples=200)
    assert generous["verdict"]["non_inferior"] is True


def test_what_forbids_a_verdict() -> None:
    same = [NumbersCase(f"c{i}", f"p{i}", [3.0 + i], [3.0 + i], (7.0,)) for i in range(12)]
    verdict = summarise_numbers(same, ("age",), resamples=50)["verdict"]
    assert (verdict["non_inferior"], verdict["cause"]) == (None, "reference")
    random = np.random.default_rng(0)
    chance = [NumbersCase(f"c{i}", f"p{i}", [v], [v], (w,)) for i, (v, w) in enumerate(random.normal(size=(40, 2)))]
    verdict = summarise_numbers(chance, ("age",), resamples=200)["verdict"]
    assert (verdict["non_inferior"], verdict["cause"]) == (None, "parent")
    other = [
        NumbersCase(c.case, c.patient, c.parent, [v, v], c.label) for c, v in zip(cohort(), range(60), strict=True)
    ]
    assert summarise_numbers(other, ("age", "share"), resamples=100)["verdict"]["non_inferior"] is not True
    one = [NumbersCase(c.case, "p", c.parent, c.compressed, c.label) for c in cohort()]
    result = summarise_numbers(one, ("age", "share"), resamples=50)
    assert result["verdict"]["non_inferior"] is None
    assert result["parent"]["metrics"]["mae/age"]["low"] is None


def test_missing_references_are_left_out_number_by_number() -> None:
    cases = [
        NumbersCase(c.case, c.patient, c.parent, c.compressed, (None if i < 20 else c.label[0], c.label[1]))
        for i, c in enumerate(cohort())
    ]
    found = summarise_numbers(cases, ("age", "share"), resamples=50)["parent"]["metrics"]
    kept = cases[20:]
    expected = metrics.mean_absolute_error([c.label[0] for c in kept], [c.parent[0] for c in kept])
    assert found["mae/age"]["value"] == pytest.approx(expected, abs=EXACT)
    nobody = [NumbersCase(c.case, c.patient, c.parent, c.compressed, None) for c in cases]
    assert summarise_numbers(nobody, ("age", "share"), resamples=50)["verdict"]["cause"] == "reference"
