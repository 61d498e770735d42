"""Replicates of every metric of both networks and of their difference."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from microtome.clinical.cases import (
    CasePrediction,
    CaseScores,
    flatten,
    flatten_difference,
    patients_of,
    probabilities_of,
)
from microtome.clinical.statistics import Replicates, difference, resample, resample_means
from microtome.metrics import CLASSES, METRICS, base, named
from microtome.types import Array

Parts = dict[str, dict[str, Replicates]]
"""`parent`, `compressed` and `difference`, each by metric."""


def segmentation_parts(
    cases: Sequence[CaseScores], keys: Sequence[str], left_out: Sequence[str], resamples: int, seed: int
) -> Parts:
    """Of cases with a reference: the metrics named by `keys`; structures to leave out have no part in the means."""
    rows = [
        (
            flatten(case.parent, leave_out=left_out),
            flatten(case.compressed, leave_out=left_out),
            flatten_difference(case, leave_out=left_out),
        )
        for case in cases
    ]
    if not rows:
        return {"parent": {}, "compressed": {}, "difference": {}}
    values = np.array([[row.get(key, math.nan) for row in triple for key in keys] for triple in rows])
    found = resample_means(values, patients_of(cases), resamples=resamples, seed=seed)
    return {
        part: dict(zip(keys, found[start : start + len(keys)], strict=True))
        for part, start in zip(("parent", "compressed", "difference"), range(0, len(found), len(keys)), strict=True)
    }


def classification_parts(
    cases: Sequence[CasePrediction], threshold: float | None, names: Sequence[str], resamples: int, seed: int
) -> Parts:
    """Of cases with a label; of more than two classes also each one's own metrics."""
    if not cases:
        return {"parent": {}, "compressed": {}, "difference": {}}
    labels = np.array([case.label for case in cases])
    statistics: dict[str, Callable[[Array], Array]] = {}
    for side in ("parent", "compressed"):
        statistics |= {
            f"{side} {name}": statistic
            for name, statistic in _statistics(probabilities_of(cases, side), labels, threshold, names).items()
        }
    found = resample(statistics, patients_of(cases), resamples=resamples, seed=seed)
    parts: Parts = {"parent": {}, "compressed": {}, "difference": {}}
    for side in ("parent", "compressed"):
        each = {key.partition(" ")[2]: value for key, value in found.items() if key.startswith(f"{side} ")}
        parts[side] = _with_means(each)
    parts["difference"] = {
        name: difference(parts["compressed"][name], replicates) for name, replicates in parts["parent"].items()
    }
    return parts


def _with_means(each: Mapping[str, Replicates]) -> dict[str, Replicates]:
    """Metrics of classes, after their mean, which weighs every class the same."""
    found: dict[str, Replicates] = {}
    for metric in dict.fromkeys(base(name) for name in each):
        own = {name: value for name, value in each.items() if base(name) == metric}
        if metric not in own:
            first = next(iter(own.values()))
            mean = float(np.mean([value.value for value in own.values()]))
            samples = np.mean([value.samples for value in own.values()], axis=0)
            found[metric] = Replicates(mean, samples, first.groups, first.cases)
        found |= own
    return found


def _statistics(
    table: Array, labels: Array, threshold: float | None, names: Sequence[str]
) -> dict[str, Callable[[Array], Array]]:
    """The metrics of one network as functions of weights (R, N); of more than two classes, for each that occurs."""

    def statistic(name: str, of: int | None) -> Callable[[Array], Array]:
        module, _, function = METRICS[name].computed_by.partition(":")
        compute = getattr(importlib.import_module(module), function)
        return lambda weights: np.asarray(compute(table, labels, threshold=threshold, weights=weights, of=of))

    if table.shape[1] <= 2:
        return {name: statistic(name, None) for name in named(CLASSES)}
    classes = [int(k) for k in np.unique(labels)]
    return {f"{name}/{names[k]}": statistic(name, k) for name in named(CLASSES) for k in classes}


def support(cases: Sequence[CasePrediction], names: Sequence[str]) -> dict[str, int]:
    """Patients that metrics rest on: those of the class, those of the others, or the fewer of both."""
    found: dict[str, int] = {}
    for k, name in enumerate(names) if len(names) > 2 else [(1, "")]:
        inside = len({case.patient for case in cases if case.label == k})
        outside = len({case.patient for case in cases if case.label != k})
        for metric in named(CLASSES):
            rests = {"sensitivity": inside, "specificity": outside}.get(metric, min(inside, outside))
            found[f"{metric}/{name}" if name else metric] = rests
    return found
