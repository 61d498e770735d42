"""Boxes that networks find, against reference boxes: scores of many cases.

All metrics are of one class, and the mean over the classes weighs each the same. A class without any reference box has
none, and the means leave it out. A case without reference boxes counts with its false findings. `map` is COCO's mean of
the average precision over overlaps of 0.50 to 0.95, `ap50` and `ap10` that at one overlap; `froc` is the mean of the
sensitivities at 1/8 to 8 false findings per image, at an overlap of 0.1. At the operating point there are `hits`, the
share of references found, and `false`, false findings per image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from microtome.clinical.boxes import iou, matched
from microtome.clinical.by_name import NOTHING, SIDES, parts_by_name, with_undefined
from microtome.clinical.cases import patients_of
from microtome.clinical.doubts import Doubt, disagreement
from microtome.clinical.froc import RATES, Hits, hits_of
from microtome.clinical.guard import guarded, listed
from microtome.clinical.noninferiority import chosen_margin
from microtome.clinical.replicated import Parts
from microtome.clinical.statistics import RESAMPLES, Replicates, Statistic, bootstrap_mean
from microtome.clinical.summary import Json, common_parts, require_cases, verdict_of
from microtome.metrics import BOXES, Metric, named, part
from microtome.types import Array

OVERLAPS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())
LEAST = 0.1  # overlap of a finding that counts as right, where sensitivity matters
SAME = 0.5  # overlap of two networks' findings that are the same
AT = {f"sensitivity@{rate:g}": rate for rate in RATES}
HALF = 0.5


@dataclass(frozen=True, eq=False)
class BoxesCase:
    """A case, and what both networks find in it.

    Attributes:
        case: pseudonym of the case.
        patient: pseudonym of the patient.
        parent: what the parent finds, (n, 2 + 2·d): class, score, box (`clinical.boxes`).
        compressed: what the compressed network finds.
        reference: (m, 1 + 2·d): class, box; None if unknown.
        subgroups: column → value, such as site.
    """

    case: str
    patient: str
    parent: Array
    compressed: Array
    reference: Array | None = None
    subgroups: Mapping[str, str] = field(default_factory=dict)


def operating_points(found: Sequence[Array], references: Sequence[Array], classes: int) -> list[float | None]:
    """The score of each class at which F1 is largest, at an overlap of 0.1; None where nothing is found."""
    return [hits_of(found, references, k, LEAST).best_threshold() for k in range(classes)]


def same_boxes(parent: Array, compressed: Array) -> float:
    """Share of two networks' findings that have a counterpart of their class, overlapping by half; 1 where none is.

    Give those at or above the operating point only.
    """
    total, pairs = len(parent) + len(compressed), 0
    for k in np.unique(parent[:, 0]):
        ours, theirs = parent[parent[:, 0] == k], compressed[compressed[:, 0] == k]
        ours = ours[np.argsort(-ours[:, 1], kind="stable")]
        pairs += int((matched(iou(ours[:, 2:], theirs[:, 2:]), SAME) >= 0).sum())
    return 2 * pairs / total if total else 1.0


def summarise_boxes(
    cases: Sequence[BoxesCase],
    names: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    metric: str = "froc",
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The parts of `result.json` that follow from cases with boxes.

    Args:
        cases: the evaluation cases.
        names: of the classes.
        thresholds: of each class, the score at or above which a finding counts at the operating point.
        metric: what the verdict rests on, such as `froc` (the mean over classes) or `map/NAME`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        As `summary.summarise_segmentation`; `counts.boxes` are the references of each class.

    Raises:
        DataError: no cases.
        LabelError: the metric is unknown.
        OptionError: metric or margin make no sense.
    """
    chosen_margin(metric, margin, own)
    require_cases(cases)
    limits = [HALF] * len(names) if thresholds is None else list(thresholds)

    def measure(chosen: Sequence[BoxesCase]) -> Parts:
        return _parts([case for case in chosen if case.reference is not None], names, limits, resamples, seed)

    whole = with_undefined(measure(cases), metric, cases)
    shares = np.array([same_boxes(_above(case.parent, limits), _above(case.compressed, limits)) for case in cases])
    agreement = bootstrap_mean(shares, patients_of(cases), resamples=resamples, seed=seed)
    verdict = verdict_of(whole, metric, margin, own)
    result = common_parts(cases, whole, agreement, verdict, measure)
    known = [case.reference for case in cases if case.reference is not None]
    counts = {name: int(sum((one[:, 0] == k).sum() for one in known)) for k, name in enumerate(names)}
    doubts, left_out = _doubts(counts, whole["parent"], part(metric), cases=len(known))
    result["verdict"] = guarded(
        verdict,
        whole["difference"],
        doubts=[*doubts, *disagreement(agreement, "findings")],
        left_out=left_out,
        own=own,
    )
    result["counts"]["empty_reference"] = {}
    result["counts"]["boxes"] = counts
    result["cases"] = [
        {
            "case": case.case,
            "patient": case.patient,
            "subgroups": dict(case.subgroups),
            "label": None if case.reference is None else case.reference.tolist(),
            "parent": {"boxes": _rounded(case.parent)},
            "compressed": {"boxes": _rounded(case.compressed)},
            "agreement": float(share),
        }
        for case, share in zip(cases, shares, strict=True)
    ]
    return result


def _above(found: Array, limits: Sequence[float]) -> Array:
    """Findings at or above the operating point of their class."""
    return found[found[:, 1] >= np.asarray(limits)[found[:, 0].astype(int)]] if len(found) else found


def _parts(
    cases: Sequence[BoxesCase], names: Sequence[str], limits: Sequence[float], resamples: int, seed: int
) -> Parts:
    if not cases:
        return NOTHING
    references = [case.reference for case in cases if case.reference is not None]
    statistics: dict[str, dict[str, Statistic]] = {side: {} for side in SIDES}
    for side in SIDES:
        found = [getattr(case, side) for case in cases]
        for k, name in enumerate(names):
            if not any((one[:, 0] == k).any() for one in references):
                continue
            near = hits_of(found, references, k, LEAST)
            each = [hits_of(found, references, k, least) for least in OVERLAPS]
            own: dict[str, Statistic] = {
                "froc": partial(_froc, near),
                "map": partial(_mean_precision, each),
                "ap50": each[0].average_precision,
                "ap10": near.average_precision,
                **{metric: partial(_sensitivity, near, rate) for metric, rate in AT.items()},
                "hits": partial(_at_point, near, limits[k], 0),
                "false": partial(_at_point, near, limits[k], 1),
            }
            statistics[side] |= {f"{metric}/{name}": own[metric] for metric in named(BOXES)}
    if not statistics["parent"]:
        return NOTHING
    everyone = np.ones(len(cases), bool)
    return parts_by_name(statistics, dict.fromkeys(names, everyone), cases, resamples=resamples, seed=seed)


def _froc(hits: Hits, weights: Array) -> Array:
    mean: Array = hits.sensitivities(weights).mean(axis=0)
    return mean


def _sensitivity(hits: Hits, rate: float, weights: Array) -> Array:
    found: Array = hits.sensitivities(weights, (rate,))[0]
    return found


def _mean_precision(each: Sequence[Hits], weights: Array) -> Array:
    mean: Array = np.mean([one.average_precision(weights) for one in each], axis=0)
    return mean


def _at_point(hits: Hits, threshold: float, place: int, weights: Array) -> Array:
    return hits.at(threshold, weights)[place]


def _doubts(
    counts: Mapping[str, int], parent: Mapping[str, Replicates], judged: str, *, cases: int
) -> tuple[list[Doubt], list[str]]:
    """What forbids "non-inferior", and the classes that no reference has."""
    absent = [name for name, count in counts.items() if not count]
    if not cases:
        return [], []
    if judged in absent or len(absent) == len(counts):
        what = judged or listed(list(counts))
        return [Doubt("reference", f"No evaluation case has a reference box of {what}.")], absent
    found = parent.get(f"froc/{judged}" if judged else "froc")
    low = None if found is None else found.interval().low
    value = math.nan if found is None else found.value
    if not value > 0 or (low is not None and low <= 0):
        return [Doubt("parent", f"The parent itself finds next to nothing: its FROC score is {value:.4f}.")], absent
    return [], absent


def _rounded(found: Array) -> list[list[float]]:
    return [[float(f"{value:.7g}") for value in row] for row in found]
