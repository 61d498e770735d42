"""FROC curves: what is found over what is found falsely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.report import drawing
from microtome.report.plots import SMALL
from microtome.types import Array

ENDS = (0.0625, 16.0)  # of the axis of false findings per image: half of the smallest rate to twice the largest
TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8)


def froc(curves: Mapping[str, tuple[Array, Array]], *, name: str) -> str:
    """Sensitivity over false findings per image, of both networks; each curve is (false per image, sensitivity)."""
    figure, axes = drawing.canvas(SMALL, SMALL)
    drawing.place(figure, axes, left=0.62, right=0.15, top=0.15, bottom=0.55)
    axes.set_xscale("log", base=2)
    for order, (label, (false, true)) in enumerate(curves.items()):
        color = drawing.PARENT if order == 0 else drawing.COMPRESSED
        dashes: Any = "-" if order == 0 else (0, (5, 2))
        x = [max(value, ENDS[0]) for value in false]
        axes.step([*x, ENDS[1]], [*true, true[-1]], where="post", color=color, linewidth=1.8, linestyle=dashes)
        axes.text(
            0.97, 0.12 - 0.07 * order, label, color=color, ha="right", transform=axes.transAxes, parse_math=False
        )  # fmt: skip
    axes.set_xlim(ENDS)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(TICKS)
    axes.set_xticklabels([f"{tick:g}" for tick in TICKS], parse_math=False)
    axes.minorticks_off()
    axes.spines["left"].set_visible(True)
    axes.set_xlabel("false findings per image", color=drawing.MUTED)
    axes.set_ylabel("share of references found", color=drawing.MUTED)
    return drawing.svg(figure, name=name, label="FROC curves of parent and compressed")
