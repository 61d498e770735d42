"""Verdicts, their reasons, and that they are as often wrong as they may be."""

import numpy as np
import pytest
from scipy import stats

from microtome.clinical.noninferiority import Verdict, no_reference, non_inferiority
from microtome.clinical.statistics import resample_means
from microtome.errors import OptionError


def verdict(differences: np.ndarray, *, metric: str = "dice", margin: float | None = None) -> Verdict:
    column = np.asarray(differences, float)[:, None]
    return non_inferiority(metric, resample_means(column, list(range(len(column))))[0], margin=margin)


def spread(n: int, mean: float, sd: float) -> np.ndarray:
    """n values with exactly this mean and standard deviation, near normal."""
    values = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return mean + sd * values / values.std(ddof=1)


def test_non_inferior() -> None:
    found = verdict(spread(100, -0.001, 0.001))
    assert found.non_inferior is True
    assert found.reason == (
        "The lower bound of the one-sided 95 % interval of the Dice difference, -0.0012, "
        "lies above the margin of -0.005."
    )
    assert found.lower_one_sided == pytest.approx(-0.001 - 1.66 * 0.0001, abs=2e-5)
    assert (found.cases, found.patients, found.margin) == (100, 100, 0.005)


def test_inferior() -> None:
    found = verdict(spread(60, -0.02, 0.01))
    assert found.non_inferior is False
    assert found.reason.startswith(
        "Inferior: the upper bound of the one-sided 95 % interval of the Dice difference, -0.01"
    )
    assert "lies below the margin of -0.005" in found.reason


def test_not_enough_cases_says_how_many() -> None:
    found = verdict(spread(30, 0.0, 0.02))
    assert found.non_inferior is None
    assert found.reason.startswith("Not enough cases: the lower bound")
    needed = int(found.reason.split("About ")[1].split(" cases")[0])
    assert needed == pytest.approx(99, abs=8)  # the sd comes from 2,000 resamples
    assert "are needed to decide (sd of the paired differences 0.020); there are 30." in found.reason


def test_a_loss_within_the_margin_needs_more_cases() -> None:
    needed = int(verdict(spread(30, -0.0025, 0.02)).reason.split("About ")[1].split(" cases")[0])
    assert needed == pytest.approx(4 * 99, rel=0.08)


def test_a_loss_beyond_the_margin_that_is_not_certain() -> None:
    found = verdict(spread(30, -0.006, 0.02))
    assert found.non_inferior is None
    assert "The difference seen, -0.006, is beyond the margin: more cases will hardly help." in found.reason


def test_no_difference_at_all_is_non_inferior() -> None:
    found = verdict(np.zeros(5))
    assert found.non_inferior is True
    assert found.lower_one_sided == 0.0
    assert "difference, 0, lies above the margin of -0.005" in found.reason


def test_fewer_than_five_patients_give_no_verdict() -> None:
    found = verdict(np.zeros(4))
    assert found.non_inferior is None
    assert found.reason == (
        "Not enough cases: the Dice difference rests on 4 patients, and a verdict needs at least 5."
    )
    repeated = resample_means(np.zeros((20, 1)), ["a"] * 20)[0]
    assert "rests on 1 patient," in non_inferiority("dice", repeated).reason


def test_the_margin_and_the_bound_are_told_apart() -> None:
    found = verdict(np.full(10, -0.00499996))
    assert found.non_inferior is True
    assert "-0.00499996, lies above the margin of -0.005" in found.reason


def test_false_non_inferiority_is_about_five_in_a_hundred() -> None:
    # At a true loss of exactly the margin, at most 5 % may pass. Ten patients: the plain percentiles pass 8 %.
    random = np.random.default_rng(0)
    passed = sum(verdict(-0.005 + 0.01 * random.normal(size=10)).non_inferior is True for _ in range(400))
    assert 0.02 <= passed / 400 <= 0.075


def test_margins_and_metrics_are_checked() -> None:
    with pytest.raises(OptionError, match="no default margin for sensitivity"):
        verdict(np.zeros(6), metric="sensitivity")
    with pytest.raises(OptionError, match="margin is 0"):
        verdict(np.zeros(6), margin=0.0)
    assert verdict(np.zeros(6), metric="auroc").margin == 0.01
    assert "Dice (anterior) difference" in verdict(np.zeros(6), metric="dice/anterior").reason


def test_to_dict_has_the_fields_of_the_result() -> None:
    found = verdict(np.zeros(6))
    assert found.to_dict() == {
        "metric": "dice",
        "margin": 0.005,
        "cases": 6,
        "patients": 6,
        "lower": 0.0,
        "non_inferior": True,
        "reason": found.reason,
    }
    assert no_reference("auroc").to_dict()["non_inferior"] is None


def test_where_lower_is_better_a_rise_is_the_loss() -> None:
    better, worse = spread(60, -0.4, 0.1), spread(60, 0.4, 0.1)
    found = verdict(better, metric="hd95/anterior", margin=0.3)
    assert found.non_inferior is True
    assert found.reason.startswith(
        "The upper bound of the one-sided 95 % interval of the HD95 (anterior) difference, -0.3"
    )
    assert "lies below the margin of 0.3." in found.reason
    assert found.lower_one_sided == pytest.approx(-0.4 + 1.67 * 0.1 / 60**0.5, abs=3e-3)
    lost = verdict(worse, metric="hd95/anterior", margin=0.3)
    assert lost.non_inferior is False
    assert lost.reason.startswith("Inferior: the lower bound of the one-sided 95 % interval of the HD95 (anterior)")
    assert "lies above the margin of 0.3." in lost.reason
    assert verdict(spread(30, 0.25, 0.5), metric="hd95", margin=0.3).non_inferior is None


def test_what_is_no_share_may_have_a_margin_above_one() -> None:
    assert verdict(spread(60, 0.0, 0.1), metric="hd95", margin=2.0).non_inferior is True
    with pytest.raises(OptionError, match="no default margin for hd95"):
        verdict(np.zeros(6), metric="hd95")
    with pytest.raises(OptionError, match=r"The margin is -1"):
        verdict(np.zeros(6), metric="hd95", margin=-1.0)
