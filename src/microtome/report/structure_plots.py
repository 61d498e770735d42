"""The plots of the section on structure, each as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microtome.report import drawing, words
from microtome.report.plots import WIDE

MAX_LAYERS = 64  # rows before the picture becomes longer than two pages


@dataclass(frozen=True)
class Width:
    """One layer: channels that it gives out, in the parent and in the compressed network; None where it is missing."""

    label: str
    parent: float | None
    compressed: float | None
    note: str


def widths(rows: Sequence[Width], *, name: str) -> str:
    """Draw the network from top to bottom, each layer as wide as its channels: the parent's, and what is left.

    Empty without rows.
    """
    if not rows:
        return ""
    step = 0.2
    figure, axes = drawing.canvas(WIDE, 0.5 + step * len(rows))
    gutter = 0.3 + 0.083 * min(34, max(len(row.label) for row in rows))
    drawing.place(figure, axes, left=gutter, right=0.4 + 0.083 * max(len(r.note) for r in rows), top=0.1, bottom=0.3)
    for place, row in enumerate(rows):
        if row.parent is not None:
            axes.barh(place, row.parent, 0.8, left=-row.parent / 2, color=drawing.PARENT, alpha=0.25, linewidth=0)
        if row.compressed is not None:
            axes.barh(place, row.compressed, 0.8, left=-row.compressed / 2, color=drawing.COMPRESSED, linewidth=0)
        axes.annotate(
            row.note, (1.0, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            va="center", color=drawing.MUTED, annotation_clip=False, parse_math=False,
        )  # fmt: skip
    widest = max(value for row in rows for value in (row.parent, row.compressed) if value is not None)
    axes.set_xlim(-0.52 * widest, 0.52 * widest)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([words.shorten(row.label, 34) for row in rows], parse_math=False, color=drawing.INK)
    axes.set_xticks([])
    axes.grid(visible=False)
    return drawing.svg(figure, name=name, label="Channels of each layer, before and after")


@dataclass(frozen=True)
class Round:
    """One round of a loop: what the network still costs (1 is the start), its score, and whether it was acceptable."""

    cost: float
    score: float
    accepted: bool
    chosen: bool


def trajectory(rows: Sequence[Round], *, floor: float | None, what: str, score: str, name: str) -> str:
    """Draw the score against what is left of the network; what was not acceptable is hollow. Empty below two rounds."""
    if len(rows) < 2:
        return ""
    figure, axes = drawing.canvas(WIDE, 3.2)
    drawing.place(figure, axes, left=0.95, right=0.5, top=0.25, bottom=0.55)
    axes.plot([r.cost for r in rows], [r.score for r in rows], color=drawing.PARENT, linewidth=1.2)
    for place, row in enumerate(rows):
        style: dict[str, Any] = {"color": drawing.COMPRESSED if row.chosen else drawing.PARENT}
        if not row.accepted:
            style = {"color": drawing.BAD, "markerfacecolor": drawing.PAPER}
        axes.plot([row.cost], [row.score], "D" if row.chosen else "o", markersize=9 if row.chosen else 5.5, **style)
        axes.annotate(
            str(place), (row.cost, row.score), xytext=(0, 8), textcoords="offset points", ha="center",
            color=drawing.MUTED,
        )  # fmt: skip
    if floor is not None:
        axes.axhline(floor, color=drawing.BAD, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.set_xlim(1.04, 0.0)
    axes.set_xlabel(what, color=drawing.MUTED)
    axes.set_ylabel(score, color=drawing.MUTED, parse_math=False)
    return drawing.svg(figure, name=name, label=f"{score} against {what}, round by round")


@dataclass(frozen=True)
class Found:
    """One network of a search: its cost, its score, who proposed it, and whether it is on the front or was taken."""

    label: str
    cost: float
    score: float
    group: str
    chosen: bool


def search(rows: Sequence[Found], *, what: str, score: str, name: str) -> str:
    """Draw score against cost, one line for each group; the chosen one is a diamond. Empty without rows."""
    if not rows:
        return ""
    figure, axes = drawing.canvas(WIDE, 3.4)
    drawing.place(figure, axes, left=0.95, right=1.9, top=0.25, bottom=0.55)
    for order, group in enumerate(dict.fromkeys(row.group for row in rows)):
        own = sorted((row for row in rows if row.group == group), key=lambda row: row.cost)
        colour = (drawing.COMPRESSED, drawing.PARENT, drawing.MUTED)[min(order, 2)]
        dashes: Any = "-" if order == 0 else (0, (5, 2))
        costs, scores = [row.cost for row in own], [row.score for row in own]
        axes.plot(costs, scores, color=colour, linestyle=dashes, linewidth=1.3, marker="o", markersize=4.5)
        axes.annotate(
            group, (1.0, 0.95 - 0.12 * order), xycoords="axes fraction", xytext=(10, 0), textcoords="offset points",
            va="center", color=colour, annotation_clip=False, parse_math=False,
        )  # fmt: skip
        for row in own:
            if row.chosen:
                axes.plot([row.cost], [row.score], "D", color=drawing.COMPRESSED, markersize=9)
    axes.set_xlabel(what, color=drawing.MUTED)
    axes.set_ylabel(score, color=drawing.MUTED, parse_math=False)
    return drawing.svg(figure, name=name, label=f"{score} against {what}")
