"""The one rule for structures that are absent from the reference, the prediction or both.

    reference  prediction   Dice  NSD   HD95
    absent     absent       NaN   NaN   NaN                undefined: left out of every mean, and counted
    one of the two absent   0     0     image diagonal     the worst that the image allows, in mm

A mean thus says how well present structures are found and how often absent ones are invented. It gives no credit for
an absent structure that was rightly left out: such cases would push every mean towards 1 (Reinke et al., "Understanding
metric-related pitfalls in image analysis validation", Nature Methods 2024).

A paired difference needs both sides. Where just one of two networks invents an absent structure, its rival did the best
that is possible, so the rival's NaN counts as the metric's best value in that difference. Otherwise a compressed
network that invents lesions in healthy patients would lose nothing. `paired_difference` does this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from microtome.metrics import about

UNDEFINED = math.nan


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the image's diagonal in mm: the root of the sum of (voxels × spacing)² over the axes.

    It stands for HD95 where one mask is empty. No two voxels of the image are farther apart.
    """
    return math.hypot(*(size * step for size, step in zip(shape, spacing, strict=True)))


def worst(metric: str, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """What stands for a structure that just one of reference and prediction has: the table's value, or the diagonal."""
    value = about(metric).worst
    return diagonal(shape, spacing) if value is None else value


def paired_difference(metric: str, parent: float, compressed: float) -> float:
    """Compressed − parent for one structure of one case.

    Args:
        metric: of a structure, such as `dice`.
        parent: score of the parent, NaN where undefined.
        compressed: score of the compressed network, NaN where undefined.

    Returns:
        NaN where both are undefined. Where one is, it counts as the best possible score (see the module).
    """
    if math.isnan(parent) and math.isnan(compressed):
        return UNDEFINED
    best = about(metric).best
    return (best if math.isnan(compressed) else compressed) - (best if math.isnan(parent) else parent)
