"""Boxes in two and three dimensions: how much two overlap, and which found one is which reference.

A box is 2·d numbers, its lower corner and then its upper one, in any unit: (y₀, x₀, y₁, x₁) or six for volumes. It
holds what lies between, so that a box of equal corners is empty. Findings are rows (n, 2 + 2·d): class, score, box;
references (m, 1 + 2·d): class, box.
"""

from __future__ import annotations

import numpy as np

from microtome.types import Array


def volumes(boxes: Array) -> Array:
    """Area or volume of boxes (n, 2·d): (n,)."""
    d = boxes.shape[1] // 2
    sides: Array = np.maximum(boxes[:, d:] - boxes[:, :d], 0.0).prod(axis=1)
    return sides


def iou(ours: Array, theirs: Array) -> Array:
    """Intersection over union of boxes (n, 2·d) and (m, 2·d): (n, m); 0 for two empty ones."""
    d = ours.shape[1] // 2
    low = np.maximum(ours[:, None, :d], theirs[None, :, :d])
    high = np.minimum(ours[:, None, d:], theirs[None, :, d:])
    shared = np.maximum(high - low, 0.0).prod(axis=2)
    total = volumes(ours)[:, None] + volumes(theirs)[None] - shared
    return np.where(total > 0, shared / np.where(total > 0, total, 1.0), 0.0)


def matched(overlap: Array, least: float) -> Array:
    """Which reference each finding gets, the findings in their order: its index, or -1.

    Each takes, of the references that are still free, the one it overlaps most, if that is at least `least`; of equal
    ones the last, as COCO does (Lin et al., ECCV 2014).

    Args:
        overlap: (n, m), the findings by falling score.
        least: the smallest overlap that counts.
    """
    found = np.full(len(overlap), -1)
    free = np.ones(overlap.shape[1], bool)
    for row, shares in enumerate(overlap):
        best, place = min(least, 1 - 1e-10), -1
        for column in np.flatnonzero(free):
            if shares[column] >= best:
                best, place = shares[column], int(column)
        if place >= 0:
            found[row] = place
            free[place] = False
    return found


def kept(boxes: Array, scores: Array, most: float) -> Array:
    """Indices of boxes (n, 2·d) by falling score, without those that overlap a better one by more than `most`.

    Greedy non-maximum suppression, as torchvision's `nms` does it.
    """
    order = np.argsort(-scores, kind="stable")
    chosen: list[int] = []
    while order.size:
        first, rest = order[0], order[1:]
        chosen.append(int(first))
        if not rest.size:
            break
        order = rest[iou(boxes[first : first + 1], boxes[rest])[0] <= most]
    return np.array(chosen, np.int64)
