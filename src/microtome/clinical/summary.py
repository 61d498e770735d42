"""Many cases → the parts of `result.json` that say what compression did: plain dicts of floats, None for undefined.

Metric names: `dice`, `nsd`, `hd95` are means over cases of each case's mean over its defined structures; `dice/NAME` is
the mean over cases of one structure. Classification has `auroc`, `auprc`, `sensitivity`, `specificity`.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from microtome.clinical import classification
from microtome.clinical.cases import CasePrediction, CaseScores, Flat, flatten, flatten_difference
from microtome.clinical.noninferiority import Verdict, chosen_margin, no_reference, non_inferiority
from microtome.clinical.statistics import RESAMPLES, Replicates, bootstrap_mean, difference, resample, resample_means
from microtome.errors import DataError, LabelError
from microtome.metrics import CLASSES, METRICS, Metric, named
from microtome.types import Array, Interval

Json = dict[str, Any]


Parts = dict[str, dict[str, Replicates]]
"""`parent`, `compressed` and `difference`, each by metric."""


class Summarised(Protocol):
    """What every case has, whatever its task."""

    @property
    def case(self) -> str:
        """Pseudonym of the case."""

    @property
    def patient(self) -> str:
        """Pseudonym of the patient."""

    @property
    def subgroups(self) -> Mapping[str, str]:
        """Column → value, such as site."""


AnyCase = TypeVar("AnyCase", bound=Summarised)


def summarise_segmentation(
    cases: Sequence[CaseScores],
    *,
    metric: str = "dice",
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The parts of `result.json` that follow from scored cases.

    Args:
        cases: the evaluation cases.
        metric: what the verdict rests on, such as `dice`, `nsd` or `dice/NAME`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        `parent` and `compressed` (each with `metrics`), `difference`, `agreement`, `verdict`, `operating_point` (None),
        `subgroups`, `counts` (`evaluation`, `patients`, `empty_reference`; `invented` = cases where just one of the
        networks segments a structure that the reference does not have), `cases`.

    Raises:
        DataError: no cases.
        LabelError: no case has the structure that the metric asks for.
        OptionError: metric or margin make no sense.
    """
    chosen_margin(metric, margin, own)
    require_cases(cases)
    scored = [case for case in cases if case.parent]
    measured = list(dict.fromkeys(metric for case in scored for metric in case.parent))
    structures = list(dict.fromkeys(name for case in scored for name in case.parent[measured[0]]))
    keys = [f"{metric}{end}" for metric in measured for end in ("", *(f"/{name}" for name in structures))]

    def measure(chosen: Sequence[CaseScores]) -> Parts:
        return _segmentation_parts([case for case in chosen if case.parent], keys, resamples, seed)

    whole = measure(cases)
    absent = Counter(name for case in scored for name in case.empty)
    agreement = bootstrap_mean(
        np.array([case.agreement for case in cases]), patients_of(cases), resamples=resamples, seed=seed
    )
    result = common_parts(cases, whole, agreement, verdict_of(whole, metric, margin, own), measure)
    result["operating_point"] = None
    result["counts"]["empty_reference"] = {name: absent[name] for name in structures}
    result["counts"]["invented"] = {name: _invented(scored, name, measured[0]) for name in structures}
    result["cases"] = [
        {
            "case": case.case,
            "patient": case.patient,
            "subgroups": dict(case.subgroups),
            "parent": _json_flat(flatten(case.parent)),
            "compressed": _json_flat(flatten(case.compressed)),
            "agreement": _number(case.agreement),
        }
        for case in cases
    ]
    return result


def summarise_classification(
    cases: Sequence[CasePrediction],
    *,
    threshold: float | None = None,
    metric: str = "auroc",
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The parts of `result.json` that follow from classified cases.

    Args:
        cases: the evaluation cases.
        threshold: the parent's operating point (`classification.operating_point`); None decides by the highest
            probability, as more than two classes always do.
        metric: what the verdict rests on: `auroc`, `auprc`, `sensitivity` or `specificity`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        As `summarise_segmentation`. `agreement` is the fraction of cases with the parent's decision.
        `counts.empty_reference` is empty. `operating_point` is left to the caller, who knows where it was fixed.

    Raises:
        DataError: no cases, or a probability is not finite.
        LabelError: labels do not fit the probabilities, or the metric is unknown.
        OptionError: metric or margin make no sense.
    """
    chosen_margin(metric, margin, own)
    require_cases(cases)

    def measure(chosen: Sequence[CasePrediction]) -> Parts:
        return _classification_parts([c for c in chosen if c.label is not None], threshold, resamples, seed)

    whole = measure(cases)
    parent, compressed = (
        classification.decide(_probabilities(cases, side), threshold=threshold) for side in ("parent", "compressed")
    )
    agreement = bootstrap_mean(parent == compressed, patients_of(cases), resamples=resamples, seed=seed)
    result = common_parts(cases, whole, agreement, verdict_of(whole, metric, margin, own), measure)
    result["counts"]["empty_reference"] = {}
    result["cases"] = [
        {
            "case": case.case,
            "patient": case.patient,
            "subgroups": dict(case.subgroups),
            "label": case.label,
            "parent": {"score": [float(value) for value in case.parent]},
            "compressed": {"score": [float(value) for value in case.compressed]},
        }
        for case in cases
    ]
    return result


def _segmentation_parts(cases: Sequence[CaseScores], keys: Sequence[str], resamples: int, seed: int) -> Parts:
    rows = [(flatten(case.parent), flatten(case.compressed), flatten_difference(case)) for case in cases]
    if not rows:
        return {"parent": {}, "compressed": {}, "difference": {}}
    values = np.array([[row.get(key, math.nan) for row in triple for key in keys] for triple in rows])
    found = resample_means(values, patients_of(cases), resamples=resamples, seed=seed)
    return {
        part: dict(zip(keys, found[start : start + len(keys)], strict=True))
        for part, start in zip(("parent", "compressed", "difference"), range(0, len(found), len(keys)), strict=True)
    }


def _classification_parts(cases: Sequence[CasePrediction], threshold: float | None, resamples: int, seed: int) -> Parts:
    if not cases:
        return {"parent": {}, "compressed": {}, "difference": {}}
    labels = np.array([case.label for case in cases])
    statistics: dict[str, Callable[[Array], Array]] = {}
    for side in ("parent", "compressed"):
        statistics |= {
            f"{side} {name}": statistic
            for name, statistic in _statistics(_probabilities(cases, side), labels, threshold).items()
        }
    found = resample(statistics, patients_of(cases), resamples=resamples, seed=seed)
    parts: Parts = {"parent": {}, "compressed": {}, "difference": {}}
    for key, replicates in found.items():
        side, name = key.split(" ")
        parts[side][name] = replicates
    parts["difference"] = {
        name: difference(parts["compressed"][name], replicates) for name, replicates in parts["parent"].items()
    }
    return parts


def _statistics(table: Array, labels: Array, threshold: float | None) -> dict[str, Callable[[Array], Array]]:
    """The metrics of one network as functions of weights (R, N)."""

    def statistic(name: str) -> Callable[[Array], Array]:
        module, _, function = METRICS[name].computed_by.partition(":")
        compute = getattr(importlib.import_module(module), function)
        return lambda weights: np.asarray(compute(table, labels, threshold=threshold, weights=weights))

    return {name: statistic(name) for name in named(CLASSES)}


def common_parts(
    cases: Sequence[AnyCase],
    whole: Parts,
    agreement: Interval,
    verdict: Verdict,
    measure: Callable[[Sequence[AnyCase]], Parts],
) -> Json:
    """The parts of `result.json` that all tasks have: `parent`, `compressed`, `difference`, `agreement`, `verdict`,
    `subgroups`, and `counts` of cases and patients.

    Args:
        cases: the evaluation cases.
        whole: replicates of each metric over all cases.
        agreement: of parent and compressed network.
        verdict: on the metric that was chosen.
        measure: replicates over some of the cases, for subgroups.
    """
    subgroups: Json = {}
    for column in dict.fromkeys(column for case in cases for column in case.subgroups):
        values = sorted({case.subgroups[column] for case in cases if column in case.subgroups})
        subgroups[column] = {}
        for value in values:
            chosen = [case for case in cases if case.subgroups.get(column) == value]
            part = {name: _json_intervals(metrics) for name, metrics in measure(chosen).items()}
            subgroups[column][value] = {"cases": len(chosen), **part}
    return {
        "parent": {"metrics": _json_intervals(whole["parent"])},
        "compressed": {"metrics": _json_intervals(whole["compressed"])},
        "difference": _json_intervals(whole["difference"]),
        "agreement": _json_interval(agreement),
        "verdict": verdict.to_dict(),
        "subgroups": subgroups,
        "counts": {"evaluation": len(cases), "patients": len(set(patients_of(cases)))},
    }


def verdict_of(parts: Parts, metric: str, margin: float | None, own: Mapping[str, Metric] | None = None) -> Verdict:
    """The verdict on one of the metrics; none where no case has a reference.

    Args:
        parts: replicates of each metric over all cases.
        metric: what the verdict rests on.
        margin: the acceptable loss; None takes the metric's default.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Raises:
        LabelError: the metric was not measured.
        OptionError: metric or margin make no sense.
    """
    if not parts["difference"]:
        return no_reference(metric, margin=margin, own=own)
    if metric not in parts["difference"]:
        raise LabelError(f"There is no metric {metric!r}.", f"Choose one of {', '.join(parts['difference'])}.")
    return non_inferiority(metric, parts["difference"][metric], margin=margin, own=own)


def _invented(cases: Sequence[CaseScores], name: str, metric: str) -> int:
    """Cases where one network, and not the other, segments a structure that is absent."""
    return sum(math.isnan(case.parent[metric][name]) != math.isnan(case.compressed[metric][name]) for case in cases)


def require_cases(cases: Sequence[object]) -> None:
    """Refuse an empty cohort.

    Raises:
        DataError: there are no cases.
    """
    if not cases:
        raise DataError("There are no evaluation cases to summarise.", "Check the split of the cohort.")


def patients_of(cases: Sequence[AnyCase]) -> list[Hashable]:
    """The patient of each case."""
    return [case.patient for case in cases]


def _probabilities(cases: Sequence[CasePrediction], side: str) -> Array:
    return np.array([getattr(case, side) for case in cases], dtype=np.float64)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _json_flat(flat: Flat) -> dict[str, float | None]:
    return {name: _number(value) for name, value in flat.items()}


def _json_interval(interval: Interval) -> dict[str, float | None]:
    return {"value": _number(interval.value), "low": _number(interval.low), "high": _number(interval.high)}


def _json_intervals(metrics: Mapping[str, Replicates]) -> Json:
    return {name: _json_interval(replicates.interval()) for name, replicates in metrics.items()}
