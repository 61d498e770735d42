"""The plots of the pages, each as inline SVG. They draw what the result holds and compute nothing that is evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.report import drawing, words
from microtome.types import Array, Interval

WIDE = 10.2  # inches; the page's column
SMALL = 3.9
ROW = 0.34  # inches per row of a forest or range plot
MAX_RANGES = 48  # activations drawn before the plot becomes longer than a page
CROWDED = 1500  # points above which a scatter is drawn as pixels, to keep the page small


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot: a name, an interval, and whether it is the one that the verdict is about."""

    label: str
    interval: Interval
    strong: bool = False


def forest(rows: Sequence[ForestRow], *, name: str, xlabel: str, label: str, limit: float | None = None) -> str:
    """Differences (compressed − parent) with intervals, zero, and `limit`, beyond which one is inferior; negative where
    higher values are better. Empty without rows.
    """
    drawn = [row for row in rows if row.interval.value is not None]
    if not drawn:
        return ""
    figure, axes = drawing.canvas(WIDE, 0.85 + ROW * len(drawn))
    gutter = 0.3 + 0.083 * min(34, max(len(row.label) for row in drawn))
    drawing.place(figure, axes, left=gutter, right=0.25, top=0.32, bottom=0.5)
    numbers = [0.0] if limit is None else [0.0, limit]
    for place, row in enumerate(drawn):
        value, low, high = row.interval.value, row.interval.low, row.interval.high
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=drawing.COMPRESSED, linewidth=2.4 if row.strong else 1.5)
            numbers += [low, high]
        axes.plot([value], [place], "D" if row.strong else "o", color=drawing.COMPRESSED, markersize=6)
        numbers.append(value or 0.0)
    axes.axvline(0.0, color=drawing.MUTED, linewidth=1.0)
    span = (max(numbers) - min(numbers)) or 1.0
    left, right = min(numbers) - 0.08 * span, max(numbers) + 0.08 * span
    axes.set_xlim(left, right)
    if limit is not None:
        axes.axvline(limit, color=drawing.BAD, linewidth=1.3, linestyle=(0, (4, 3)))
        inferior = (left, limit) if limit < 0 else (limit, right)
        axes.axvspan(*inferior, color=drawing.BAD, alpha=0.07, linewidth=0)
        _note(axes, limit, 1.0, f"margin {words.signed(limit)}", color=drawing.BAD)
    axes.set_ylim(len(drawn) - 0.5, -0.6)
    axes.set_yticks(range(len(drawn)))
    axes.set_yticklabels([words.shorten(row.label, 34) for row in drawn], parse_math=False, color=drawing.INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(xlabel, color=drawing.MUTED, parse_math=False)
    axes.locator_params(axis="x", nbins=7)
    return drawing.svg(figure, name=name, label=label)


def _note(axes: Any, x: float, y: float, text: str, *, color: str) -> None:
    """A word above the axes at data x."""
    axes.annotate(
        text, (x, y), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points", ha="center",
        color=color, parse_math=False, annotation_clip=False,
    )  # fmt: skip


def pairs(parent: Array, compressed: Array, *, name: str, what: str, threshold: float | None = None) -> str:
    """Scatter of a number per case, parent against compressed (N,), with the diagonal and an optional threshold."""
    keep = np.isfinite(parent) & np.isfinite(compressed)
    x, y = parent[keep], compressed[keep]
    if x.size == 0:
        return ""
    figure, axes = drawing.canvas(SMALL, SMALL)
    drawing.place(figure, axes, left=0.62, right=0.15, top=0.15, bottom=0.55)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    pad = 0.04 * ((high - low) or 1.0)
    limits = (low - pad, high + pad)
    axes.plot(limits, limits, color=drawing.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    if threshold is not None and limits[0] < threshold < limits[1]:
        axes.axvline(threshold, color=drawing.BAD, linewidth=0.9)
        axes.axhline(threshold, color=drawing.BAD, linewidth=0.9)
    axes.scatter(
        x, y, s=20, facecolor=drawing.COMPRESSED, alpha=0.55, edgecolor="none", rasterized=x.size > CROWDED
    )  # fmt: skip
    _square(axes, limits, xlabel=f"{what}, parent", ylabel=f"{what}, compressed")
    return drawing.svg(figure, name=name, label=f"{what} of {x.size} cases, parent against compressed")


def changes(parent: Array, compressed: Array, *, name: str, what: str) -> str:
    """Change of a number per case (compressed − parent) over the parent's number; both (N,)."""
    keep = np.isfinite(parent) & np.isfinite(compressed)
    x, y = parent[keep], compressed[keep] - parent[keep]
    if x.size == 0:
        return ""
    figure, axes = drawing.canvas(SMALL, SMALL)
    drawing.place(figure, axes, left=0.8, right=0.15, top=0.15, bottom=0.55)
    axes.axhline(0.0, color=drawing.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.scatter(
        x, y, s=20, facecolor=drawing.COMPRESSED, alpha=0.55, edgecolor="none", rasterized=x.size > CROWDED
    )  # fmt: skip
    most = 1.1 * float(np.abs(y).max()) or 1.0
    axes.set_ylim(-most, most)
    axes.spines["left"].set_visible(True)
    axes.locator_params(nbins=6)
    axes.set_xlabel(f"{what}, parent", color=drawing.MUTED, parse_math=False)
    axes.set_ylabel(f"change of {what}", color=drawing.MUTED, parse_math=False)
    return drawing.svg(figure, name=name, label=f"Change of {what} in {x.size} cases")


def _square(axes: Any, limits: tuple[float, float], *, xlabel: str, ylabel: str) -> None:
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.spines["left"].set_visible(True)
    axes.locator_params(nbins=6)
    axes.set_xlabel(xlabel, color=drawing.MUTED, parse_math=False)
    axes.set_ylabel(ylabel, color=drawing.MUTED, parse_math=False)


def roc_points(scores: Array, positive: Array) -> tuple[Array, Array]:
    """(1 − specificity, sensitivity) at every distinct score, for drawing; scores (N,), positive bool (N,)."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positive[order]
    last = np.append(np.diff(ranked) != 0, True)  # tied scores are one step
    true = np.cumsum(hits)[last] / max(1, int(hits.sum()))
    false = np.cumsum(~hits)[last] / max(1, int((~hits).sum()))
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


@dataclass(frozen=True)
class RocCurve:
    """Scores (N,) of one network, and its operating point as (1 − specificity, sensitivity), None where unknown."""

    label: str
    scores: Array
    color: str
    point: tuple[float, float] | None


def roc(curves: Sequence[RocCurve], positive: Array, *, name: str) -> str:
    """ROC curves of both networks over the same cases. Empty when only one class is present."""
    if positive.all() or not positive.any():
        return ""
    figure, axes = drawing.canvas(SMALL, SMALL)
    drawing.place(figure, axes, left=0.62, right=0.15, top=0.15, bottom=0.55)
    axes.plot((0, 1), (0, 1), color=drawing.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    for order, curve in enumerate(curves):
        false, true = roc_points(curve.scores, positive)
        dashes: Any = "-" if order == 0 else (0, (5, 2))
        axes.plot(false, true, color=curve.color, linewidth=1.8, linestyle=dashes)
        if curve.point is not None:
            marker, size, face = ("o", 11, "none") if order == 0 else ("D", 5.5, curve.color)
            axes.plot(
                *curve.point, marker, color=curve.color, markersize=size, markerfacecolor=face, markeredgewidth=1.8
            )
        axes.plot((0.5, 0.58), (0.16 - 0.08 * order,) * 2, color=curve.color, linewidth=1.8, linestyle=dashes)
        axes.text(0.61, 0.16 - 0.08 * order, curve.label, color=drawing.INK, va="center", parse_math=False)
    _square(axes, (-0.02, 1.02), xlabel="1 − specificity", ylabel="sensitivity")
    return drawing.svg(figure, name=name, label="ROC curves of parent and compressed, with the operating point")


def ranges(rows: Sequence[tuple[str, float, float]], *, name: str) -> str:
    """Quantizer ranges, low to high, one line per activation; a symmetric logarithmic axis when they differ widely."""
    drawn = rows[:MAX_RANGES]
    if not drawn:
        return ""
    step = 0.21
    figure, axes = drawing.canvas(WIDE, 0.7 + step * len(drawn))
    gutter = 0.3 + 0.083 * min(34, max(len(row[0]) for row in drawn))
    drawing.place(figure, axes, left=gutter, right=0.25, top=0.1, bottom=0.5)
    for place, (_, low, high) in enumerate(drawn):
        axes.plot([low, high], [place, place], color=drawing.PARENT, linewidth=5.5, solid_capstyle="butt", alpha=0.8)
    widths = np.array([max(abs(low), abs(high)) for _, low, high in drawn])
    median = float(np.median(widths))
    if median > 0 and widths.max() > 20 * median:
        axes.set_xscale("symlog", linthresh=median)
    axes.axvline(0.0, color=drawing.MUTED, linewidth=1.0)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_yticks(range(len(drawn)))
    axes.set_yticklabels([words.shorten(row[0], 34) for row in drawn], parse_math=False, color=drawing.INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("value of the activation", color=drawing.MUTED)
    return drawing.svg(figure, name=name, label="Range of each activation quantizer, low to high")


def tradeoff(
    points: Sequence[tuple[str, float, Interval]], *, name: str, metric: str, limit: float | None = None
) -> str:
    """Latency (ms) against metric difference, one point per package, with its interval, and `limit` as in `forest`.

    Empty without points.
    """
    drawn = [point for point in points if point[2].value is not None]
    if not drawn:
        return ""
    figure, axes = drawing.canvas(WIDE, 4.2)
    drawing.place(figure, axes, left=0.95, right=0.95, top=0.25, bottom=0.55)
    for label, latency, interval in drawn:
        if interval.low is not None and interval.high is not None:
            axes.plot([latency] * 2, [interval.low, interval.high], color=drawing.COMPRESSED, linewidth=1.4)
        axes.plot([latency], [interval.value], "o", color=drawing.COMPRESSED, markersize=7)
        axes.annotate(
            label, (latency, interval.value), xytext=(8, 5), textcoords="offset points", color=drawing.INK,
            parse_math=False,
        )  # fmt: skip
    axes.axhline(0.0, color=drawing.MUTED, linewidth=1.0)
    if limit is not None:
        axes.axhline(limit, color=drawing.BAD, linewidth=1.3, linestyle=(0, (4, 3)))
        axes.annotate(
            f"margin {words.signed(limit)}", (1.0, limit), xycoords=("axes fraction", "data"), ha="right",
            xytext=(0, 4), textcoords="offset points", color=drawing.BAD, annotation_clip=False,
        )  # fmt: skip
    latencies = [latency for _, latency, _ in drawn]
    axes.set_xlim(0, 1.15 * max(latencies))
    axes.set_xlabel("latency of one input, ms", color=drawing.MUTED)
    axes.set_ylabel(f"difference in {words.metric_name(metric)}", color=drawing.MUTED, parse_math=False)
    return drawing.svg(figure, name=name, label=f"Latency against difference in {words.metric_name(metric)}")
