"""Replicates of metrics that each finding or number of a case has of its own, and of their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from microtome.clinical.cases import Belonging, patients_of
from microtome.clinical.replicated import Parts
from microtome.clinical.statistics import Replicates, Statistic, difference, resample
from microtome.metrics import base, part
from microtome.types import Array

SIDES = ("parent", "compressed")
NOTHING: Parts = {"parent": {}, "compressed": {}, "difference": {}}


def references_of(cases: Sequence[Any], count: int) -> Array:
    """Reference numbers, float64 (cases, count); NaN where one is missing."""
    rows = [[None] * count if case.label is None else case.label for case in cases]
    return np.array([[np.nan if value is None else value for value in row] for row in rows], float).reshape(-1, count)


def parts_by_name(
    statistics: Mapping[str, Mapping[str, Statistic]],
    defined: Mapping[str, Array],
    cases: Sequence[Belonging],
    *,
    resamples: int,
    seed: int,
) -> Parts:
    """Replicates of every metric of both networks and of their difference.

    A mean weighs everything that has the metric the same. In a resample it leaves out what the resample has no value
    for, of both networks alike: one rare finding does not take the interval from all others.

    Args:
        statistics: `parent` and `compressed` → metric, such as `auroc/oedema` → function of weights.
        defined: finding or number → which cases have a reference for it, bool (cases,).
        cases: whose patients are drawn.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    flat = {f"{side} {name}": one for side in SIDES for name, one in statistics[side].items()}
    found = resample(flat, patients_of(cases), resamples=resamples, seed=seed)
    parts: Parts = {}
    for side in SIDES:
        own = {name: _counted(found[f"{side} {name}"], cases, defined[part(name)]) for name in statistics[side]}
        parts[side] = _with_means(own, cases, np.any(list(defined.values()), axis=0))
    both = parts["parent"]
    parts["difference"] = {name: difference(parts["compressed"][name], replicates) for name, replicates in both.items()}
    return parts


def with_undefined(parts: Parts, metric: str, cases: Sequence[Belonging]) -> Parts:
    """The same with the metric of the verdict, undefined where no case can tell of it; as it is without cases."""
    if not parts["difference"] or metric in parts["difference"]:
        return parts
    nothing = Replicates(float("nan"), np.zeros(0), len({case.patient for case in cases}), len(cases))
    return {side: {metric: nothing, **found} for side, found in parts.items()}


def _counted(replicates: Replicates, cases: Sequence[Belonging], defined: Array) -> Replicates:
    """With the patients and cases that have a reference."""
    patients = {case.patient for case, one in zip(cases, defined, strict=True) if one}
    return replace(replicates, groups=len(patients), cases=int(defined.sum()))


def _with_means(own: Mapping[str, Replicates], cases: Sequence[Belonging], any_defined: Array) -> dict[str, Replicates]:
    """Each metric's mean, before its parts."""
    found: dict[str, Replicates] = {}
    for metric in dict.fromkeys(base(name) for name in own):
        each = {name: one for name, one in own.items() if base(name) == metric}
        values = _mean(np.array([[one.value] for one in each.values()]))
        samples = _mean(np.stack([one.samples for one in each.values()]))
        found[metric] = _counted(Replicates(float(values[0]), samples, 0, 0), cases, any_defined)
        found |= each
    return found


def _mean(rows: Array) -> Array:
    """Mean over the first axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(finite, rows, 0.0).sum(axis=0) / finite.sum(axis=0)
    return mean


def case_rows(cases: Sequence[Any], alike: Array, key: str) -> list[dict[str, Any]]:
    """The `cases` of `result.json`: what both networks say of each, under `key`, and how alike that is (cases,)."""
    return [
        {
            "case": case.case,
            "patient": case.patient,
            "subgroups": dict(case.subgroups),
            "label": None if case.label is None else list(case.label),
            **{side: {key: [float(value) for value in getattr(case, side)]} for side in SIDES},
            "agreement": float(share),
        }
        for case, share in zip(cases, alike, strict=True)
    ]
