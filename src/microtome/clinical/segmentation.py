"""Scores of one segmented case: every metric of every structure."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from scipy.ndimage import find_objects

from microtome.clinical import surface
from microtome.clinical.empty import UNDEFINED, worst
from microtome.clinical.masks import Masks
from microtome.clinical.overlap import check_label_map, check_pair
from microtome.metrics import METRICS, STRUCTURE, named
from microtome.types import Array

STRUCTURES = named(STRUCTURE)

Scores = dict[str, dict[str, float]]


def score_segmentation(
    prediction: Array,
    reference: Array,
    *,
    labels: Mapping[int, str],
    spacing: Sequence[float],
    tolerance: float = 1.0,
    metrics: Sequence[str] | None = None,
) -> Scores:
    """Every metric of each structure of one case.

    Definitions are with the functions that `microtome.metrics` names; absent structures: `microtome.clinical.empty`.
    A structure's metrics see the box around both of its masks, which gives the same values as the whole image.

    Args:
        prediction: label map, 2-D or 3-D.
        reference: label map of the same shape.
        labels: label → name of the structures to score. Leave the background out.
        spacing: mm per voxel along each axis (pixels for pictures).
        tolerance: of surfaces, in mm.
        metrics: names of those wanted; None is all metrics of structures.

    Returns:
        `{"dice": {structure: …}, "nsd": {…}, "hd95": {…}}`; NaN where a structure is absent from both.

    Raises:
        GeometryError: the shapes differ, or spacing does not fit.
        LabelError: not label maps.
        OptionError: negative tolerance.

    Example:
        >>> reference = np.array([[0, 1], [0, 1]])
        >>> score_segmentation(reference, reference, labels={1: "lung"}, spacing=(1.0, 1.0))
        {'dice': {'lung': 1.0}, 'nsd': {'lung': 1.0}, 'hd95': {'lung': 0.0}}
    """
    prediction, reference = check_pair(prediction, reference)
    surface.check_spacing(reference.shape, spacing)
    surface.check_tolerance(tolerance)
    functions = {name: function_of(name) for name in (STRUCTURES if metrics is None else metrics)}
    scores: Scores = {metric: {} for metric in functions}
    ours, theirs = (_boxes(array, labels) for array in (prediction, reference))
    for label, name in labels.items():
        box = surface.union_box(ours.get(label), theirs.get(label))
        if box is None:
            values = dict.fromkeys(functions, UNDEFINED)
        elif label not in ours or label not in theirs:
            values = {metric: worst(metric, reference.shape, spacing) for metric in functions}
        else:
            masks = Masks(prediction[box] == label, reference[box] == label, tuple(spacing), tolerance)
            values = {metric: function(masks) for metric, function in functions.items()}
        for metric, value in values.items():
            scores[metric][name] = value
    return scores


@functools.cache
def function_of(metric: str) -> Callable[[Masks], float]:
    """Return the function that computes a metric of a structure."""
    module, _, name = METRICS[metric].computed_by.partition(":")
    function: Callable[[Masks], float] = getattr(importlib.import_module(module), name)
    return function


def empty_structures(reference: Array, *, labels: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the structures that the reference does not have.

    Raises:
        LabelError: not a label map.
    """
    present = np.bincount(check_label_map(reference, "reference").ravel(), minlength=max(labels, default=0) + 1)
    return tuple(name for label, name in labels.items() if present[label] == 0)


def _boxes(label_map: Array, labels: Collection[int]) -> dict[int, surface.Box]:
    """The box around each label that is present: one pass over the label map, and one more if 0 is asked for."""
    found: dict[int, surface.Box | None] = dict(enumerate(find_objects(label_map, max(labels, default=0)), start=1))
    if 0 in labels:
        found[0] = find_objects((label_map == 0).view(np.uint8), 1)[0]
    return {label: box for label, box in found.items() if box is not None}
