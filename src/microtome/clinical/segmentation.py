"""Scores of one segmented case: every metric of every structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.ndimage import find_objects

from microtome.clinical import surface
from microtome.clinical.empty import UNDEFINED, diagonal
from microtome.clinical.overlap import check_label_map, check_pair, count_labels, dice_from_counts
from microtome.types import Array

METRICS = ("dice", "nsd", "hd95")

Scores = dict[str, dict[str, float]]


def score_segmentation(
    prediction: Array,
    reference: Array,
    *,
    labels: Mapping[int, str],
    spacing: Sequence[float],
    tolerance: float = 1.0,
) -> Scores:
    """Dice, NSD and HD95 of each structure of one case.

    Definitions: `overlap.dice`, `surface.nsd`, `surface.hd95`; absent structures: `microtome.clinical.empty`. Surfaces
    are measured in the box around both masks of a structure, which gives the same distances as the whole image.

    Args:
        prediction: label map, 2-D or 3-D.
        reference: label map of the same shape.
        labels: label → name of the structures to score. Leave the background out.
        spacing: mm per voxel along each axis (pixels for pictures).
        tolerance: of NSD, in mm.

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
    overlaps = dice_from_counts(count_labels(prediction, reference, labels=list(labels)))
    scores: Scores = {metric: {} for metric in METRICS}
    ours, theirs = (_boxes(array, labels) for array in (prediction, reference))
    for (label, name), overlap in zip(labels.items(), overlaps, strict=True):
        scores["dice"][name] = float(overlap)
        box = surface.union_box(ours.get(label), theirs.get(label))
        if box is None:
            scores["nsd"][name], scores["hd95"][name] = UNDEFINED, UNDEFINED
        elif label not in ours or label not in theirs:
            scores["nsd"][name], scores["hd95"][name] = 0.0, diagonal(reference.shape, spacing)
        else:
            distances = surface.surface_distances(prediction[box] == label, reference[box] == label, spacing=spacing)
            scores["nsd"][name] = surface.nsd_from_distances(distances, tolerance)
            scores["hd95"][name] = surface.hd95_from_distances(distances)
    return scores


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
