"""Several findings of one image, each there or not, whatever the others are: scores of many such cases.

Every finding is a test of its own, with the metrics of `clinical.classification` over the cases whose reference says
yes or no; a missing answer leaves the case out of that finding alone. The macro mean weighs each finding the same. A
finding that is in none of these cases, or in all of them, has no AUROC and no AUPRC: the means leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from microtome.clinical import classification
from microtome.clinical.by_name import NOTHING, SIDES, case_rows, parts_by_name, references_of, with_undefined
from microtome.clinical.cases import patients_of
from microtome.clinical.chance import at_chance, hardly_better
from microtome.clinical.doubts import Doubt, disagreement
from microtome.clinical.guard import guarded, listed
from microtome.clinical.noninferiority import chosen_margin
from microtome.clinical.replicated import Parts
from microtome.clinical.statistics import RESAMPLES, Replicates, Statistic, bootstrap_mean
from microtome.clinical.summary import Json, common_parts, require_cases, verdict_of
from microtome.metrics import CLASSES, Metric, named, part
from microtome.types import Array

HALF = 0.5


@dataclass(frozen=True)
class FindingsCase:
    """A case, and what both networks say of each finding.

    Attributes:
        case: pseudonym of the case.
        patient: pseudonym of the patient.
        parent: the parent's probabilities, one per finding.
        compressed: those of the compressed network.
        label: 1, 0 or None (nobody knows) per finding; None if nothing is known.
        subgroups: column → value, such as site.
    """

    case: str
    patient: str
    parent: Sequence[float]
    compressed: Sequence[float]
    label: tuple[float | None, ...] | None = None
    subgroups: Mapping[str, str] = field(default_factory=dict)


def operating_points(scores: Array, references: Array, names: Sequence[str]) -> dict[str, float | None]:
    """The threshold of each finding by Youden's rule (`classification.operating_point`).

    Args:
        scores: (N, K) probabilities.
        references: (N, K), 1, 0 or NaN.
        names: of the findings.

    Returns:
        None for a finding that is in all of these cases or in none: no threshold can be fixed on them.

    Raises:
        DataError: a score is not finite.
    """
    found: dict[str, float | None] = {}
    for k, name in enumerate(names):
        known = np.isfinite(references[:, k])
        labels = references[known, k].astype(np.int64)
        both = len(np.unique(labels)) == 2
        found[name] = classification.operating_point(scores[known, k], labels) if both else None
    return found


def summarise_findings(
    cases: Sequence[FindingsCase],
    names: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    metric: str = "auroc",
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The parts of `result.json` that follow from cases with several findings.

    Args:
        cases: the evaluation cases.
        names: of the findings.
        thresholds: of each, at or above which it counts as found; None is one half for all.
        metric: what the verdict rests on, such as `auroc` (the macro mean) or `auroc/NAME`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        As `summary.summarise_classification`; `agreement` is the mean share of findings with the parent's decision.

    Raises:
        DataError: no cases, or a probability is not finite.
        LabelError: the metric is unknown.
        OptionError: metric or margin make no sense.
    """
    chosen_margin(metric, margin, own)
    require_cases(cases)
    limits = np.full(len(names), HALF) if thresholds is None else np.asarray(thresholds, float)

    def measure(chosen: Sequence[FindingsCase]) -> Parts:
        return _parts([case for case in chosen if case.label is not None], names, limits, resamples, seed)

    whole = with_undefined(measure(cases), metric, cases)
    decisions = [np.array([getattr(case, side) for case in cases]) >= limits for side in SIDES]
    same = (decisions[0] == decisions[1]).mean(axis=1)
    agreement = bootstrap_mean(same, patients_of(cases), resamples=resamples, seed=seed)
    verdict = verdict_of(whole, metric, margin, own)
    result = common_parts(cases, whole, agreement, verdict, measure)
    known = [case for case in cases if case.label is not None]
    references = references_of(known, len(names))
    doubts, remarks, left_out = _doubts(references, whole["parent"], metric, names)
    result["verdict"] = guarded(
        verdict,
        whole["difference"],
        doubts=[*doubts, *disagreement(agreement, "findings")],
        left_out=left_out,
        remarks=remarks,
        support=_support(known, references, names),
        own=own,
    )
    result["counts"]["empty_reference"] = {}
    result["counts"]["findings"] = {
        name: {"present": int((references[:, k] == 1).sum()), "absent": int((references[:, k] == 0).sum())}
        for k, name in enumerate(names)
    }
    result["cases"] = case_rows(cases, same, "score")
    return result


def _parts(cases: Sequence[FindingsCase], names: Sequence[str], limits: Array, resamples: int, seed: int) -> Parts:
    if not cases:
        return NOTHING
    references = references_of(cases, len(names))
    tables = {side: np.array([getattr(case, side) for case in cases], float) for side in SIDES}
    statistics: dict[str, dict[str, Statistic]] = {side: {} for side in SIDES}
    for metric in named(CLASSES):
        for k, name in enumerate(names):
            column = references[:, k]
            needed = {"sensitivity": (1.0,), "specificity": (0.0,)}.get(metric, (0.0, 1.0))
            if all((column == value).any() for value in needed):
                for side in SIDES:
                    statistics[side][f"{metric}/{name}"] = partial(
                        _one, metric, tables[side][:, k], column, float(limits[k])
                    )
    defined = {name: np.isfinite(references[:, k]) for k, name in enumerate(names)}
    return parts_by_name(statistics, defined, cases, resamples=resamples, seed=seed)


def _one(metric: str, scores: Array, references: Array, limit: float, weights: Array) -> Array:
    """One finding's metric, of the cases whose reference knows it."""
    known = np.isfinite(references)
    function = getattr(classification, metric)
    labels = references[known].astype(np.int64)
    return np.asarray(function(scores[known], labels, threshold=limit, weights=weights[:, known]))


def _doubts(
    references: Array, parent: Mapping[str, Replicates], metric: str, names: Sequence[str]
) -> tuple[list[Doubt], list[str], list[str]]:
    """What forbids "non-inferior", what is to be said beside it, and the findings that are in no case."""
    if not len(references):
        return [], [], []
    absent = [name for k, name in enumerate(names) if not (references[:, k] == 1).any()]
    always = [name for k, name in enumerate(names) if name not in absent and not (references[:, k] == 0).any()]
    remarks = []
    if always:
        remarks.append(f"All evaluation cases have {listed(always)}: the means of AUROC and AUPRC leave that out.")
    judged = [part(metric)] if part(metric) else [name for name in names if name not in (*absent, *always)]
    if not judged or judged[0] in (*absent, *always):
        what = judged[0] if judged else "any of the findings"
        sentence = f"No evaluation cases can tell of {what}: it must be there in some and not in others."
        return [Doubt("reference", sentence)], remarks, absent
    whole = parent.get(f"auroc/{judged[0]}" if part(metric) else "auroc")
    if whole is not None and at_chance(whole):
        found = whole.interval()
        between = "" if found.low is None else f" ({found.low:.4f} to {found.high:.4f})"
        sentence = f"The parent itself is no better than chance: its AUROC is {found.value:.4f}{between}."
        return [Doubt("parent", sentence)], remarks, absent
    poor = [name for name in judged if at_chance(parent.get(f"auroc/{name}"))]
    return [], [*remarks, *hardly_better(poor)], absent


def _support(cases: Sequence[FindingsCase], references: Array, names: Sequence[str]) -> dict[str, int]:
    """Patients that a finding's metrics rest on: those with it, those without, or the fewer of both."""
    found: dict[str, int] = {}
    for k, name in enumerate(names):
        inside, outside = (
            len({case.patient for case, value in zip(cases, references[:, k], strict=True) if value == wanted})
            for wanted in (1.0, 0.0)
        )
        rests: dict[str, Any] = {"sensitivity": inside, "specificity": outside}
        found |= {f"{metric}/{name}": rests.get(metric, min(inside, outside)) for metric in named(CLASSES)}
    return found
