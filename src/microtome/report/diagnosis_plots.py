"""The plots of the section on where accuracy goes, each as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.report import drawing, words
from microtome.report.plots import WIDE

MAX_LAYERS = 48  # rows before the plot becomes longer than a page
PANEL = (3.25, 1.55)  # inches
CLEAN = 80.0  # decibels from which on a layer's bar has no length: nothing is left to see
STEEP = 20.0  # a curve that falls by so much is drawn on a logarithmic axis


@dataclass(frozen=True)
class LayerLoss:
    """What one layer loses: decibels at the network's output when it alone is quantized; at its own output so far."""

    label: str
    alone: float
    accumulated: float | None
    bits: str
    worst: bool


def layer_losses(rows: Sequence[LayerLoss], *, name: str) -> str:
    """Bars that are longer the more a layer alone loses; rings for what has gathered up to it. Empty without rows."""
    if not rows:
        return ""
    step = 0.25
    figure, axes = drawing.canvas(WIDE, 0.75 + step * len(rows))
    gutter = 0.3 + 0.083 * min(34, max(len(row.label) for row in rows))
    right = 0.9 + 0.083 * max(len(row.bits) for row in rows)
    drawing.place(figure, axes, left=gutter, right=right, top=0.1, bottom=0.5)
    shown = [value for row in rows for value in (row.alone, row.accumulated) if value is not None]
    best = min(CLEAN, max(shown)) + 4
    worst = min(*shown, best - 10) - 5
    for place, row in enumerate(rows):
        colour = drawing.COMPRESSED if row.worst else drawing.PARENT
        axes.plot([best, min(row.alone, best)], [place, place], color=colour, linewidth=7, solid_capstyle="butt")
        if row.accumulated is not None:
            axes.plot(
                [min(row.accumulated, best)], [place], "o", color=drawing.INK, markersize=5.5,
                markerfacecolor=drawing.PAPER, markeredgewidth=1.3, clip_on=False,
            )  # fmt: skip
        note = f"{row.bits} · {words.plain(row.alone, 1)} dB" if row.worst else row.bits
        axes.annotate(
            note, (1.0, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            va="center", color=colour if row.worst else drawing.MUTED, annotation_clip=False, parse_math=False,
        )  # fmt: skip
    axes.set_xlim(best, worst)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([words.shorten(row.label, 34) for row in rows], parse_math=False, color=drawing.INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("signal to noise in decibels; further right is worse", color=drawing.MUTED)
    return drawing.svg(figure, name=name, label="Signal to noise at the output when one layer alone is quantized")


@dataclass(frozen=True)
class GridView:
    """A quantizer's values and its grid: counts (B,) in equal bars over `span`, and the ends of the grid."""

    counts: Sequence[float]
    span: tuple[float, float]
    grid: tuple[float, float]


def grid_view(view: GridView, *, name: str, label: str) -> str:
    """Histogram on a logarithmic axis, the grid's range shaded, what lies outside in another colour."""
    counts = np.asarray(view.counts, dtype=float)
    if counts.size == 0 or counts.max() <= 0 or view.span[1] <= view.span[0]:
        return ""
    figure, axes = drawing.canvas(*PANEL)
    drawing.place(figure, axes, left=0.08, right=0.12, top=0.08, bottom=0.3)
    edges = np.linspace(*view.span, counts.size + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    outside = (centres < view.grid[0]) | (centres > view.grid[1])
    axes.axvspan(*view.grid, color=drawing.PARENT, alpha=0.13, linewidth=0)
    for end in view.grid:
        axes.axvline(end, color=drawing.INK, linewidth=0.9)
    floor = 0.5  # half of one value: the axis is logarithmic
    for keep, colour in ((~outside, drawing.PARENT), (outside, drawing.BAD)):
        axes.stairs(np.where(keep, np.maximum(counts, floor), floor), edges, baseline=floor, fill=True, color=colour)
    axes.set_yscale("log")
    axes.set_ylim(floor, 1.6 * max(counts.max(), 1.0))
    axes.set_yticks([])
    axes.minorticks_off()
    low, high = min(view.span[0], view.grid[0]), max(view.span[1], view.grid[1])
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.locator_params(axis="x", nbins=5)
    axes.grid(visible=False, axis="y")
    return drawing.svg(figure, name=name, label=label)


@dataclass(frozen=True)
class Choice:
    """One network that could be had: its bytes, and what it loses (or its metric)."""

    label: str
    size: float
    value: float
    chosen: bool


def front(choices: Sequence[Choice], *, name: str, what: str) -> str:
    """Bytes against what is lost; the chosen one is a diamond with its name. Empty without choices."""
    if not choices:
        return ""
    figure, axes = drawing.canvas(WIDE, 3.4)
    drawing.place(figure, axes, left=0.95, right=0.4, top=0.25, bottom=0.55)
    ordered = sorted(choices, key=lambda choice: choice.size)
    factor, unit = next((pair for pair in ((1e6, "MB"), (1e3, "kB")) if ordered[-1].size >= pair[0]), (1.0, "bytes"))
    sizes, values = [choice.size / factor for choice in ordered], [choice.value for choice in ordered]
    axes.plot(sizes, values, color=drawing.PARENT, linewidth=1.2, marker="o", markersize=4.5)
    for size, choice in zip(sizes, ordered, strict=True):
        if choice.chosen:
            axes.plot([size], [choice.value], "D", color=drawing.COMPRESSED, markersize=9)
            left = size > (sizes[0] + sizes[-1]) / 2
            axes.annotate(
                words.shorten(choice.label), (size, choice.value), xytext=(-10 if left else 10, 8),
                textcoords="offset points", ha="right" if left else "left", color=drawing.INK, parse_math=False,
            )  # fmt: skip
    _logarithmic_if_steep(axes, values)
    axes.set_xlabel(f"size of the weights, {unit}", color=drawing.MUTED)
    axes.set_ylabel(what, color=drawing.MUTED, parse_math=False)
    return drawing.svg(figure, name=name, label=f"Size against {what}, one point for each plan")


def training(steps: Sequence[float], curves: Sequence[tuple[str, Sequence[float | None], str]], *, name: str) -> str:
    """Losses over the steps of training; each curve is its name, a value (or None) per step, and a colour."""
    figure, axes = drawing.canvas(WIDE, 3.0)
    drawing.place(figure, axes, left=0.95, right=1.7, top=0.2, bottom=0.55)
    drawn: list[float] = []
    ends: list[tuple[float, float, str, str]] = []
    for order, (label, values, colour) in enumerate(curves):
        points = [(step, value) for step, value in zip(steps, values, strict=False) if value is not None]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        dashes: Any = (0, (5, 2)) if order else "-"
        axes.plot(x, y, color=colour, linewidth=1.7, linestyle=dashes, marker="o" if order else "", markersize=4)
        drawn.extend(y)
        ends.append((x[-1], y[-1], label, colour))
    if not drawn:
        return ""
    _logarithmic_if_steep(axes, drawn)
    ends.sort(key=lambda end: -end[1])
    for order, (_, _, label, colour) in enumerate(ends):
        axes.annotate(
            label, (1.0, 0.95 - 0.12 * order), xycoords="axes fraction", xytext=(10, 0), textcoords="offset points",
            va="center", color=colour, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel("step", color=drawing.MUTED)
    axes.set_ylabel("loss", color=drawing.MUTED)
    return drawing.svg(figure, name=name, label="Loss over the steps of training")


def _logarithmic_if_steep(axes: Any, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > STEEP * min(values):
        axes.set_yscale("log")
        axes.minorticks_off()
