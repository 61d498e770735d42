"""Is the parent itself any good? Beside a parent that is no better than chance, no network can be worse.

A mask that does not depend on the reference has at best the Dice of one that fills the whole image, 2·r / (1 + r) where
the structure has the share r of it. What is beyond, of all that could be beyond, is the skill of a network, as Cohen's
kappa is; weights drawn at random reach a little, since structures are brighter or darker than the rest. Scores of
classes are no better than chance where their AUROC may be 0.5, decisions where the mean share of right ones over the
classes is what always saying the same would give.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from microtome.clinical.cases import CasePrediction, CaseScores, probabilities_of
from microtome.clinical.classification import decide
from microtome.clinical.doubts import Doubt
from microtome.clinical.guard import listed
from microtome.clinical.overlap import check_label_map
from microtome.clinical.statistics import Replicates, bootstrap_mean
from microtome.metrics import part
from microtome.types import Array

# Less skill than that is "slight" (Landis and Koch, Biometrics 1977).
LEAST_SKILL = 0.2
EQUAL = 1e-9
DICE, AUROC = "dice", "auroc"


def whole_image(reference: Array, *, labels: Mapping[int, str]) -> dict[str, float]:
    """Dice of a mask of the whole image, for each structure that the reference has.

    Raises:
        LabelError: not a label map.
    """
    voxels = np.bincount(check_label_map(reference, "reference").ravel(), minlength=max(labels, default=0) + 1)
    total = reference.size
    return {name: 2.0 * voxels[label] / (voxels[label] + total) for label, name in labels.items() if voxels[label]}


def segmentation_doubts(
    cases: Sequence[CaseScores], structures: Sequence[str], left_out: Sequence[str], metric: str, seed: int
) -> tuple[list[Doubt], list[str]]:
    """What forbids "non-inferior", and what is to be said beside it.

    Args:
        cases: with a reference.
        structures: all of them.
        left_out: those that no reference has.
        metric: of the verdict.
        seed: of the bootstrap.
    """
    if not cases:
        return [], []
    judged = [part(metric)] if part(metric) else [name for name in structures if name not in left_out]
    if not judged or judged[0] in left_out:
        missing = f"{judged[0]}" if judged else "any of the structures"
        return [Doubt("reference", f"No reference case holds {missing}, so nothing can be said of it.")], []
    doubts, poor = _poor_segmentation(cases, judged, seed=seed)
    return doubts, hardly_better(poor)


def classification_doubts(
    cases: Sequence[CasePrediction],
    parent: Mapping[str, Replicates],
    threshold: float | None,
    metric: str,
    names: Sequence[str],
) -> tuple[list[Doubt], list[str], list[str]]:
    """What forbids "non-inferior", what is to be said beside it, and the classes that no case has.

    Args:
        cases: with a label.
        parent: its metrics.
        threshold: its operating point, if it has one.
        metric: of the verdict.
        names: of all classes.
    """
    if not cases:
        return [], [], []
    labels = np.array([case.label for case in cases])
    decisions = decide(probabilities_of(cases, "parent"), threshold=threshold)
    auroc = f"{AUROC}/{part(metric)}" if part(metric) else AUROC
    doubts, poor = _poor_classification(auroc, parent, decisions, labels, classes=names)
    missing = [name for k, name in enumerate(names) if not (labels == k).any()]
    return doubts, hardly_better(poor), missing


def _poor_segmentation(
    cases: Sequence[CaseScores], structures: Collection[str], *, seed: int = 0
) -> tuple[list[Doubt], list[str]]:
    """What is to be said of the parent's Dice in the structures that references have.

    Args:
        cases: with a reference.
        structures: that the verdict is about.
        seed: of the bootstrap.

    Returns:
        A doubt if the parent as a whole is no better than chance; and else the structures in which it is not.
    """
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in structures}
    means, patients = [], []
    for case in cases:
        dice = case.parent.get(DICE, {})
        scored = {
            name: (dice[name], case.trivial[name]) for name in structures if name in dice and name in case.trivial
        }
        for name, pair in scored.items():
            rows[name].append(pair)
        if scored:
            means.append(np.mean(list(scored.values()), axis=0))
            patients.append(case.patient)
    if not means:
        return [], []
    table = np.array(means)
    ours, trivial = table.mean(axis=0)
    found = bootstrap_mean(table[:, 0] - table[:, 1], patients, seed=seed)
    least = found.low if found.low is not None else found.value
    if (least is not None and least <= 0) or _skill(ours, trivial) < LEAST_SKILL:
        hardly = "hardly" if least is not None and least > 0 else "no"
        reason = (
            f"The parent itself is {hardly} better than chance: its Dice is {ours:.4f}, and a mask of the whole image "
            f"has {trivial:.4f}."
        )
        return [Doubt("parent", reason)], []
    each = {name: np.mean(pairs, axis=0) for name, pairs in rows.items() if pairs}
    return [], [name for name, (ours, trivial) in each.items() if _skill(ours, trivial) < LEAST_SKILL]


def _skill(ours: float, trivial: float) -> float:
    return (ours - trivial) / (1 - trivial) if trivial < 1 else 0.0


def _poor_classification(
    metric: str, parent: Mapping[str, Replicates], decisions: Array, labels: Array, *, classes: Sequence[str]
) -> tuple[list[Doubt], list[str]]:
    """What is to be said of the parent's scores and decisions.

    Args:
        metric: the AUROC that the verdict is about: `auroc`, or that of one class.
        parent: its metrics.
        decisions: class numbers, (N,).
        labels: class numbers, (N,).
        classes: their names.

    Returns:
        Doubts if the parent as a whole is no better than chance; and else the classes in which it is not.
    """
    present = np.unique(labels)
    if len(present) < 2:
        only = classes[int(present[0])]
        return [Doubt("reference", f"All evaluation cases are of one class ({only}).")], []
    doubts = []
    if at_chance(parent.get(metric)):
        found = parent[metric].interval()
        between = "" if found.low is None else f" ({found.low:.4f} to {found.high:.4f})"
        doubts.append(
            Doubt("parent", f"The parent itself is no better than chance: its AUROC is {found.value:.4f}{between}.")
        )
    right = float(np.mean([np.mean(decisions[labels == k] == k) for k in present]))
    if right <= 1 / len(present) + EQUAL:
        doubts.append(
            Doubt(
                "parent",
                "The parent's decisions are no better than always saying the same class: they are right in "
                f"{right:.1%} of each class on average.",
            )
        )
    if doubts:
        return doubts, []
    return [], [name for name in classes if at_chance(parent.get(f"{AUROC}/{name}"))]


def at_chance(auroc: Replicates | None) -> bool:
    """Whether an AUROC, or the lower bound of its interval, is no better than 0.5."""
    if auroc is None or not math.isfinite(auroc.value):
        return False
    low = auroc.interval().low
    return (auroc.value if low is None else low) <= 0.5


def hardly_better(names: Sequence[str]) -> list[str]:
    """The sentence on structures, classes or findings in which the parent is weak; none where there are none."""
    if not names:
        return []
    return [f"The parent itself is hardly better than chance in {listed(names)}: there is little to lose."]
