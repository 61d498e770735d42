"""Plots of numbers that networks give: over their references, and of two networks against one another."""

from __future__ import annotations

from typing import Any

import numpy as np

from microtome.report import drawing, words
from microtome.report.plots import CROWDED, SMALL
from microtome.types import Array

LIMITS = 1.96  # standard deviations between which 95 % of normal differences lie


def over_reference(parent: Array, compressed: Array, reference: Array, *, name: str, what: str) -> str:
    """Numbers of both networks over the references; all (N,). Empty where there is no reference."""
    keep = np.isfinite(parent) & np.isfinite(compressed) & np.isfinite(reference)
    if not keep.any():
        return ""
    figure, axes = _square_canvas()
    x = reference[keep]
    values = np.concatenate([x, parent[keep], compressed[keep]])
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * ((high - low) or 1.0)
    axes.plot(
        (low - pad, high + pad), (low - pad, high + pad), color=drawing.MUTED, linewidth=0.9, linestyle=(0, (4, 3))
    )
    sides = (
        ("parent", parent[keep], drawing.PARENT, "o", 26),
        ("compressed", compressed[keep], drawing.COMPRESSED, "o", 9),
    )
    for order, (label, y, color, marker, size) in enumerate(sides):
        axes.scatter(
            x, y, s=size, marker=marker, facecolor=color, alpha=0.6, edgecolor="none", rasterized=x.size > CROWDED
        )
        axes.text(
            0.97, 0.12 - 0.07 * order, label, color=color, ha="right", transform=axes.transAxes, parse_math=False
        )  # fmt: skip
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(low - pad, high + pad)
    _named(axes, f"{what}, reference", f"{what}, network")
    return drawing.svg(figure, name=name, label=f"{what} of {x.size} cases over the reference, parent and compressed")


def bland_altman(parent: Array, compressed: Array, *, name: str, what: str) -> str:
    """Difference of two networks over their mean; both (N,). Empty without cases."""
    keep = np.isfinite(parent) & np.isfinite(compressed)
    if not keep.any():
        return ""
    change = compressed[keep] - parent[keep]
    figure, axes = _square_canvas(left=0.8)
    axes.axhline(0.0, color=drawing.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.scatter(
        (compressed[keep] + parent[keep]) / 2, change, s=20, facecolor=drawing.COMPRESSED, alpha=0.55, edgecolor="none",
        rasterized=change.size > CROWDED,
    )  # fmt: skip
    middle, spread = float(change.mean()), float(change.std(ddof=1)) if change.size > 1 else 0.0
    axes.axhline(middle, color=drawing.BAD, linewidth=1.0)
    for side in (-LIMITS, LIMITS):
        axes.axhline(middle + side * spread, color=drawing.BAD, linewidth=0.9, linestyle=(0, (2, 2)))
    most = 1.15 * max(float(np.abs(change).max()), abs(middle) + LIMITS * spread) or 1.0
    axes.set_ylim(-most, most)
    _named(axes, f"{what}, mean of both networks", "compressed − parent")
    label = f"Difference of {what} between both networks in {change.size} cases: mean {words.significant(middle)}"
    return drawing.svg(figure, name=name, label=label)


def _square_canvas(left: float = 0.62) -> tuple[Any, Any]:
    figure, axes = drawing.canvas(SMALL, SMALL)
    drawing.place(figure, axes, left=left, right=0.15, top=0.15, bottom=0.55)
    axes.spines["left"].set_visible(True)
    axes.locator_params(nbins=6)
    return figure, axes


def _named(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=drawing.MUTED, parse_math=False)
    axes.set_ylabel(y, color=drawing.MUTED, parse_math=False)
