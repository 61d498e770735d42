"""Which cases to calibrate on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from microtome.batches.calibration import network_inputs
from microtome.batches.features import (
    NetworkFeatures,
    contrast,
    farthest_first,
    image_features,
    in_turn,
    joined,
    tertiles,
)
from microtome.errors import DataError, OptionError, SplitError
from microtome.graph.network import Network
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.types import Array, Case

POOL = 512  # cases that are looked at; of more, so many are drawn
MOST_VALUES = 8  # of a subgroup: a column with more of them, such as an age, makes no groups

T = TypeVar("T")
Mark = tuple[str, Hashable]
"""Something that a case has in common with others, such as ("site", "A")."""


def select(
    cohort: Cohort,
    cases: Sequence[Case],
    *,
    pipeline: Pipeline,
    count: int,
    strategy: str = "first",
    seed: int = 0,
    network: Network | None = None,
) -> tuple[Case, ...]:
    """Choose up to `count` calibration cases. Only those of role train are looked at. Patients take turns.

    Images are read one by one and only a few numbers of each are kept. A case that cannot be read is not chosen by a
    strategy that looks at images.

    Args:
        cohort: where the cases belong.
        cases: to choose from.
        pipeline: what the network gets to see.
        count: how many; fewer if there are no more.
        strategy: `first`: in the order of the cohort, classes in turn.
            `random`: any.
            `stratified`: labels, subgroups, and thirds of each structure's volume are equally frequent.
            `foreground`: at random among the half with the largest share of labelled foreground; without masks, with
            the most contrast. To see windows on the foreground too, give `CalibrationBatches` `foreground=True`.
            `diverse`: cases that differ most in intensities and layout, and in the network's mean activations.
        seed: of everything random.
        network: the float network, for `diverse`; None looks at images alone.

    Raises:
        OptionError: an unknown strategy, or a count below 1.
        SplitError: none of the cases is for training.
        DataError: no case can be read.
    """
    if strategy not in STRATEGIES:
        raise OptionError(
            f"there is no way {strategy!r} to choose calibration cases.", f"Choose one of {', '.join(STRATEGIES)}."
        )
    if count < 1:
        raise OptionError(f"Calibration needs at least one case, not {count}.", "Ask for more, such as 32.")
    train = tuple(case for case in cases if case.role == "train")
    if not train:
        raise SplitError(f"none of the {len(cases)} cases is for training.", "Give a smaller share for evaluation.")
    choice = _Choice(cohort, train, pipeline, count, np.random.default_rng([seed, count]), network)
    return tuple(STRATEGIES[strategy](choice))


@dataclass(frozen=True)
class _Choice:
    """What a strategy chooses from, and how many."""

    cohort: Cohort
    cases: tuple[Case, ...]
    pipeline: Pipeline
    count: int
    rng: np.random.Generator
    network: Network | None

    def shuffled(self, count: int) -> list[Case]:
        return [self.cases[k] for k in in_turn([case.patient for case in self.cases], self.rng)[:count]]


def balanced(
    cases: Sequence[Case], count: int, rng: np.random.Generator, marks: Sequence[Sequence[Mark]] | None = None
) -> list[Case]:
    """Choose up to `count` cases such that every mark is as frequent as the others of its kind.

    One by one: of the patients that had the fewest turns, the case whose marks are rarest so far. This is how trials
    balance many factors at once without crossing them (minimization: Pocock and Simon, Biometrics 1975).

    Args:
        cases: to choose from.
        count: how many.
        rng: breaks ties.
        marks: of each case; None takes label and subgroups.
    """
    marks = _groups(cases) if marks is None else marks
    seen: Counter[Mark] = Counter()
    turns: Counter[str] = Counter()
    left = [int(k) for k in rng.permutation(len(cases))]
    chosen: list[Case] = []

    def rank(k: int) -> tuple[int, float]:
        return turns[cases[k].patient], sum(seen[mark] for mark in marks[k])

    while left and len(chosen) < count:
        best = min(left, key=rank)
        left.remove(best)
        chosen.append(cases[best])
        seen.update(marks[best])
        turns[cases[best].patient] += 1
    return chosen


def _first(choice: _Choice) -> Sequence[Case]:
    return replace(choice.cohort, cases=choice.cases).calibration(choice.count)


def _random(choice: _Choice) -> Sequence[Case]:
    return choice.shuffled(choice.count)


def _stratified(choice: _Choice) -> Sequence[Case]:
    if not any(case.mask for case in choice.cases):
        return balanced(choice.cases, choice.count, choice.rng)
    cases, volumes = _looked_at(choice, partial(_volumes, choice))
    marks: list[list[Mark]] = [list(group) for group in _groups(cases)]
    for label in sorted({label for found in volumes for label in found}):
        having = [k for k, found in enumerate(volumes) if label in found]
        for k, third in zip(having, tertiles([volumes[k][label] for k in having]), strict=True):
            marks[k].append((f"label {label}", third))
        for k in set(range(len(cases))) - set(having):
            marks[k].append((f"label {label}", None))
    return balanced(cases, choice.count, choice.rng, marks)


def _foreground(choice: _Choice) -> Sequence[Case]:
    if any(case.mask for case in choice.cases):
        cases, scores = _looked_at(choice, partial(_share, choice))
    else:
        cases, scores = _looked_at(choice, lambda case: contrast(_prepared(choice, case)))
    ranked = np.argsort(-np.asarray(scores), kind="stable")
    likely = replace(choice, cases=tuple(cases[k] for k in ranked[: max(choice.count, len(cases) // 2)]))
    return likely.shuffled(choice.count)


def _diverse(choice: _Choice) -> Sequence[Case]:
    activations = None if choice.network is None else NetworkFeatures(choice.network)

    def look(case: Case) -> list[Array]:
        prepared = prepare(choice.cohort.image(case), choice.pipeline)
        features = image_features(prepared.array)
        if activations is not None:
            features.append(activations(network_inputs(prepared, choice.pipeline, np.random.default_rng(0))))
        return features

    cases, rows = _looked_at(choice, look)
    chosen = farthest_first(joined(rows), [case.patient for case in cases], choice.count, choice.rng)
    return [cases[k] for k in chosen]


STRATEGIES: dict[str, Callable[[_Choice], Sequence[Case]]] = {
    "first": _first,
    "random": _random,
    "stratified": _stratified,
    "foreground": _foreground,
    "diverse": _diverse,
}


def _looked_at(choice: _Choice, look: Callable[[Case], T]) -> tuple[list[Case], list[T]]:
    """Return up to POOL cases (or as many as are asked for) that can be read, and what `look` says of each."""
    cases, found = [], []
    problem: DataError | None = None
    for case in choice.shuffled(max(POOL, choice.count)):
        try:
            found.append(look(case))
        except DataError as error:
            problem = error
        else:
            cases.append(case)
    if problem is not None and not cases:
        raise problem
    return cases, found


def _prepared(choice: _Choice, case: Case) -> Array:
    return prepare(choice.cohort.image(case), choice.pipeline).array


def _volumes(choice: _Choice, case: Case) -> dict[int, float]:
    """Volume of each structure in mm³; of pictures, which have no size, its share of the picture."""
    if case.mask is None:
        return {}
    image = choice.cohort.image(case) if choice.pipeline.spatial_dims == 3 else None
    labels = choice.cohort.mask(case, image)
    assert labels is not None
    voxel = 1 / labels.size if image is None else float(np.prod(image.spacing))
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): float(n) * voxel for value, n in zip(values, counts, strict=True) if value > 0}


def _share(choice: _Choice, case: Case) -> float:
    """Share of the voxels that are labelled foreground."""
    labels = choice.cohort.mask(case, None)
    return 0.0 if labels is None else float(np.count_nonzero(labels)) / labels.size


def _groups(cases: Sequence[Case]) -> list[tuple[Mark, ...]]:
    """Label and subgroups of each case, without columns that have a value of their own for nearly each case."""
    values: dict[str, set[str]] = {}
    for case in cases:
        for name, value in case.subgroups.items():
            values.setdefault(name, set()).add(value)
    names = sorted(name for name, found in values.items() if len(found) <= MOST_VALUES)
    return [
        (("class", case.label), *(("subgroup " + name, case.subgroups.get(name)) for name in names)) for case in cases
    ]
