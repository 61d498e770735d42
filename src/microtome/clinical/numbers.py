"""Numbers that a network gives for an image, such as an age: errors of one network, and of two on the same cases.

Predictions and references have shape (N,), weights (R, N) for R sets of them, as in `clinical.classification`; a
missing reference is NaN, and its case has no part in that number. Errors are in the reference's own unit, but for
`nmae`, which is in standard deviations of the references of all evaluation cases: so numbers of different units
have one mean, and a margin that needs no unit. Where all references are the same, `nmae` and the concordance are
undefined.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from microtome.clinical.by_name import NOTHING, SIDES, case_rows, parts_by_name, references_of, with_undefined
from microtome.clinical.cases import patients_of
from microtome.clinical.doubts import Doubt, disagreement
from microtome.clinical.guard import guarded, listed
from microtome.clinical.noninferiority import chosen_margin
from microtome.clinical.replicated import Parts
from microtome.clinical.statistics import RESAMPLES, Statistic, bootstrap_mean
from microtome.clinical.summary import Json, common_parts, require_cases, verdict_of
from microtome.metrics import METRICS, NUMBERS, Metric, named, part
from microtome.types import Array

# Two networks give the same number if it differs by no more than that, in standard deviations of the references.
ALIKE = 0.25


@dataclass(frozen=True)
class NumbersCase:
    """A case, and the numbers that both networks give for it.

    Attributes:
        case: pseudonym of the case.
        patient: pseudonym of the patient.
        parent: the parent's numbers.
        compressed: those of the compressed network.
        label: the reference numbers, None where one is missing; None if none is known.
        subgroups: column → value, such as site.
    """

    case: str
    patient: str
    parent: Sequence[float]
    compressed: Sequence[float]
    label: tuple[float | None, ...] | None = None
    subgroups: Mapping[str, str] = field(default_factory=dict)


def mae(predicted: Array, reference: Array, *, weights: Array | None = None, spread: float = 1.0) -> float | Array:
    """Mean absolute error, in the reference's unit. `spread` does not matter here."""
    return _mean(np.abs(predicted - reference), weights)


def nmae(predicted: Array, reference: Array, *, weights: Array | None = None, spread: float = 1.0) -> float | Array:
    """Mean absolute error over `spread`, the standard deviation of the references; NaN where that is 0."""
    return _mean(np.abs(predicted - reference) / (spread or np.nan), weights)


def rmse(predicted: Array, reference: Array, *, weights: Array | None = None, spread: float = 1.0) -> float | Array:
    """Root of the mean squared error, in the reference's unit. `spread` does not matter here."""
    return np.sqrt(_mean(np.square(predicted - reference), weights))


def concordance(
    predicted: Array, reference: Array, *, weights: Array | None = None, spread: float = 1.0
) -> float | Array:
    """Lin's concordance correlation coefficient: 2·cov / (var + var + (mean − mean)²), 1 is perfect.

    Lin, Biometrics 1989; with variances over n. NaN where both sides are constant, or the reference is. `spread` does
    not matter here.
    """
    if not reference.size:
        return float("nan")
    centre = reference.mean()  # moving both changes nothing but the rounding of squares
    predicted, reference = predicted - centre, reference - centre
    ours, theirs = (_mean(values, weights) for values in (predicted, reference))
    squares, others, products = (
        _mean(values, weights) for values in (predicted**2, reference**2, predicted * reference)
    )
    variance, spread_of_reference = np.maximum(squares - ours**2, 0.0), np.maximum(others - theirs**2, 0.0)
    total = variance + spread_of_reference + (ours - theirs) ** 2
    flat = spread_of_reference <= (1e-9 * centre) ** 2  # rounding of equal numbers
    with np.errstate(invalid="ignore", divide="ignore"):
        value = 2 * (products - ours * theirs) / total
    return np.where(flat, np.nan, value)[()]


def summarise_numbers(
    cases: Sequence[NumbersCase],
    names: Sequence[str],
    *,
    metric: str = "nmae",
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The parts of `result.json` that follow from cases with numbers.

    Args:
        cases: the evaluation cases.
        names: of the numbers.
        metric: what the verdict rests on, such as `nmae` (the mean over the numbers) or `mae/NAME`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        As `summary.summarise_classification`; `agreement` is the share of numbers that differ by no more than a quarter
        of the references' standard deviation, `counts.spread` that standard deviation.

    Raises:
        DataError: no cases.
        LabelError: the metric is unknown.
        OptionError: metric or margin make no sense.
    """
    chosen_margin(metric, margin, own)
    require_cases(cases)
    spread = _spread(references_of(cases, len(names)))

    def measure(chosen: Sequence[NumbersCase]) -> Parts:
        return _parts([case for case in chosen if case.label is not None], names, spread, resamples, seed)

    whole = with_undefined(measure(cases), metric, cases)
    before, after = (np.array([getattr(case, side) for case in cases], float) for side in SIDES)
    unit = np.where(spread > 0, spread, np.where(before.std(axis=0) > 0, before.std(axis=0), 1.0))
    same = (np.abs(after - before) <= ALIKE * unit).mean(axis=1)
    agreement = bootstrap_mean(same, patients_of(cases), resamples=resamples, seed=seed)
    verdict = verdict_of(whole, metric, margin, own)
    result = common_parts(cases, whole, agreement, verdict, measure)
    known = [case for case in cases if case.label is not None]
    doubts, remarks, left_out = _doubts(known, spread, names, part(metric), seed)
    result["verdict"] = guarded(
        verdict,
        whole["difference"],
        doubts=[*doubts, *disagreement(agreement, "numbers")],
        left_out=left_out,
        remarks=remarks,
        own=own,
    )
    result["operating_point"] = None
    result["counts"]["empty_reference"] = {}
    result["counts"]["spread"] = {name: float(one) for name, one in zip(names, spread, strict=True)}
    result["cases"] = case_rows(cases, same, "value")
    return result


def _mean(values: Array, weights: Array | None) -> float | Array:
    """Mean of (N,), or for weights (R, N) one mean each."""
    if weights is None:
        return float(np.mean(values)) if values.size else float("nan")
    with np.errstate(invalid="ignore"):
        means: Array = (weights @ values) / weights.sum(axis=1)
    return means


def _spread(references: Array) -> Array:
    """Standard deviation of each column, over n, NaN left out; 0 where it has no two values."""
    known = np.isfinite(references)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, references, 0.0).sum(axis=0) / count
    squares = np.where(known, references - mean, 0.0) ** 2
    spread: Array = np.sqrt(squares.sum(axis=0) / count)
    return np.where(spread > 1e-9 * np.abs(mean), spread, 0.0)


def _parts(cases: Sequence[NumbersCase], names: Sequence[str], spread: Array, resamples: int, seed: int) -> Parts:
    if not cases:
        return NOTHING
    references = references_of(cases, len(names))
    tables = {side: np.array([getattr(case, side) for case in cases], float) for side in SIDES}
    statistics: dict[str, dict[str, Statistic]] = {side: {} for side in SIDES}
    for metric in named(NUMBERS):
        module, _, function = METRICS[metric].computed_by.partition(":")
        compute = getattr(importlib.import_module(module), function)
        for k, name in enumerate(names):
            known = np.isfinite(references[:, k])
            if not known.any():
                continue
            for side in SIDES:
                statistics[side][f"{metric}/{name}"] = partial(
                    _one, compute, tables[side][:, k], references[:, k], known, float(spread[k])
                )
    defined = {name: np.isfinite(references[:, k]) for k, name in enumerate(names)}
    return parts_by_name(statistics, defined, cases, resamples=resamples, seed=seed)


def _one(compute: Statistic, predicted: Array, reference: Array, known: Array, spread: float, weights: Array) -> Array:
    """One number's metric, of the cases whose reference knows it."""
    found = compute(predicted[known], reference[known], weights=weights[:, known], spread=spread)  # type: ignore[call-arg]
    return np.asarray(found)


def _doubts(
    cases: Sequence[NumbersCase], spread: Array, names: Sequence[str], judged: str, seed: int
) -> tuple[list[Doubt], list[str], list[str]]:
    """What forbids "non-inferior", what is to be said beside it, and the numbers that no case has."""
    if not cases:
        return [], [], []
    references = references_of(cases, len(names))
    predicted = np.array([case.parent for case in cases], float)
    empty = [name for k, name in enumerate(names) if not np.isfinite(references[:, k]).any()]
    constant = [name for k, name in enumerate(names) if name not in empty and spread[k] == 0]
    remarks = []
    if constant:
        remarks.append(f"All evaluation cases have the same reference for {listed(constant)}.")
    chosen = [k for k, name in enumerate(names) if name not in (*empty, *constant) and judged in ("", name)]
    if not chosen:
        what = judged or "any number"
        return (
            [Doubt("reference", f"The evaluation cases do not differ in {what}: nothing can be said.")],
            remarks,
            empty,
        )
    weak = [k for k in chosen if _no_better([k], predicted, references, spread, cases, seed)]
    if _no_better(chosen, predicted, references, spread, cases, seed):
        sentence = "The parent itself is no better than always giving the median of the references."
        return [Doubt("parent", sentence)], remarks, empty
    if weak:
        also = listed([names[k] for k in weak])
        remarks.append(f"The parent itself is no better than always giving the median in {also}.")
    return [], remarks, empty


def _no_better(
    chosen: Sequence[int],
    predicted: Array,
    references: Array,
    spread: Array,
    cases: Sequence[NumbersCase],
    seed: int,
) -> bool:
    """Whether the parent's errors may be as large as those of the median, over some of the numbers."""
    columns = references[:, chosen]
    theirs, ours = np.abs(columns - np.nanmedian(columns, axis=0)), np.abs(predicted[:, chosen] - columns)
    gains = (theirs - ours) / spread[chosen]
    known = np.isfinite(gains)
    rows = known.any(axis=1)
    means = np.where(known, gains, 0.0).sum(axis=1)[rows] / known.sum(axis=1)[rows]
    found = bootstrap_mean(means, [case.patient for case, one in zip(cases, rows, strict=True) if one], seed=seed)
    low = found.value if found.low is None else found.low
    return low is not None and low <= 0
