"""Many cases → the parts of `result.json` that say what compression did: plain dicts of floats, None for undefined.

Metric names: `dice`, `nsd`, `hd95` are means over cases of each case's mean over its defined structures; `dice/NAME` is
the mean over cases of one structure; structures that no reference has are left out of the means. Classification has
`auroc`, `auprc`, `sensitivity`, `specificity`; with more than two classes these are means, and `auroc/NAME` is that of
one class against all others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from microtome.clinical import classification
from microtome.clinical.cases import (
    CasePrediction,
    CaseScores,
    Flat,
    flatten,
    patients_of,
    probabilities_of,
)
from microtome.clinical.chance import classification_doubts, segmentation_doubts
from microtome.clinical.doubts import disagreement, little_in_common
from microtome.clinical.guard import guarded
from microtome.clinical.noninferiority import Verdict, chosen_margin, no_reference, non_inferiority
from microtome.clinical.replicated import Parts, classification_parts, segmentation_parts, support
from microtome.clinical.statistics import RESAMPLES, Replicates, bootstrap_mean
from microtome.errors import DataError, LabelError
from microtome.metrics import Metric
from microtome.types import Interval

Json = dict[str, Any]


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
        `parent` and `compressed` (each with `metrics`), `difference`, `agreement`, `verdict` (`guard.guarded`),
        `operating_point` (None),
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

    absent = Counter(name for case in scored for name in case.empty)
    left_out = [name for name in structures if absent[name] == len(scored)]

    def measure(chosen: Sequence[CaseScores]) -> Parts:
        return segmentation_parts([case for case in chosen if case.parent], keys, left_out, resamples, seed)

    whole = measure(cases)
    agreement = bootstrap_mean(
        np.array([case.agreement for case in cases]), patients_of(cases), resamples=resamples, seed=seed
    )
    verdict = verdict_of(whole, metric, margin, own)
    result = common_parts(cases, whole, agreement, verdict, measure)
    doubts, remarks = segmentation_doubts(scored, structures, left_out, metric, seed)
    result["verdict"] = guarded(
        verdict,
        whole["difference"],
        doubts=[*doubts, *(disagreement(agreement, "voxels") or little_in_common(scored))],
        left_out=left_out,
        remarks=remarks,
        own=own,
    )
    result["operating_point"] = None
    result["counts"]["empty_reference"] = {name: absent[name] for name in structures}
    result["counts"]["invented"] = {name: _invented(scored, name, measured[0]) for name in structures}
    result["cases"] = [
        {
            "case": case.case,
            "patient": case.patient,
            "subgroups": dict(case.subgroups),
            "parent": _json_flat(flatten(case.parent, leave_out=left_out)),
            "compressed": _json_flat(flatten(case.compressed, leave_out=left_out)),
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
    classes: Sequence[str] = (),
) -> Json:
    """The parts of `result.json` that follow from classified cases.

    Args:
        cases: the evaluation cases.
        threshold: the parent's operating point (`classification.operating_point`); None decides by the highest
            probability, as more than two classes always do.
        metric: what the verdict rests on: `auroc`, `auprc`, `sensitivity` or `specificity`; with more than two
            classes also that of one, such as `auroc/NAME`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.
        classes: their names; `class 0` and so on where there are none.

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

    names = classes or [f"class {k}" for k in range(probabilities_of(cases, "parent").shape[1])]
    known = [case for case in cases if case.label is not None]

    def measure(chosen: Sequence[CasePrediction]) -> Parts:
        return classification_parts([c for c in chosen if c.label is not None], threshold, names, resamples, seed)

    whole = measure(cases)
    parent, compressed = (
        classification.decide(probabilities_of(cases, side), threshold=threshold) for side in ("parent", "compressed")
    )
    agreement = bootstrap_mean(parent == compressed, patients_of(cases), resamples=resamples, seed=seed)
    verdict = verdict_of(whole, metric, margin, own)
    result = common_parts(cases, whole, agreement, verdict, measure)
    doubts, remarks, left_out = classification_doubts(known, whole["parent"], threshold, metric, names)
    result["verdict"] = guarded(
        verdict,
        whole["difference"],
        doubts=[*doubts, *disagreement(agreement, "cases")],
        left_out=left_out,
        remarks=remarks,
        support=support(known, names),
        own=own,
    )
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


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _json_flat(flat: Flat) -> dict[str, float | None]:
    return {name: _number(value) for name, value in flat.items()}


def _json_interval(interval: Interval) -> dict[str, float | None]:
    return {"value": _number(interval.value), "low": _number(interval.low), "high": _number(interval.high)}


def _json_intervals(metrics: Mapping[str, Replicates]) -> Json:
    return {name: _json_interval(replicates.interval()) for name, replicates in metrics.items()}
