"""Matplotlib figures → SVG text that lives inside a page: the page's fonts, and colours that follow light and dark."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Stand-in colours: matplotlib wants hexadecimal, the page wants its own variables.
INK = "#010203"
MUTED = "#010204"
LINE = "#010205"
PARENT = "#010206"
COMPRESSED = "#010207"
BAD = "#010208"
BAND = "#010209"
PAPER = "#01020a"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PARENT: "--parent",
    COMPRESSED: "--compressed",
    BAD: "--bad",
    BAND: "--band",
    PAPER: "--card",
}
FONT = 9.5  # points
# A fixed salt makes the same figure the same text; text stays text, so that it can be read aloud and selected.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "microtome", "font.size": FONT, "axes.unicode_minus": True}
POINTS_PER_INCH = 72


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """An empty figure (inches) and its axes, without a frame, in the page's colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(LINE)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, length=0, pad=5, labelsize=FONT)
    axes.grid(visible=True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def place(figure: Figure, axes: Any, *, left: float, right: float, top: float, bottom: float) -> None:
    """Put the axes into the figure with margins in inches."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes.set_position(box)


def svg(figure: Figure, *, name: str, label: str) -> str:
    """Render a figure as an inline SVG element.

    `name` must be unique on the page, it prefixes the ids; `label` is read to those who cannot see the figure.
    """
    stream = io.StringIO()
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The page's own fonts draw the text; that matplotlib's font lacks a letter is of no interest.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(stream.getvalue(), name=name, label=label, width=float(figure.get_size_inches()[0]))


def _inline(document: str, *, name: str, label: str, width: float) -> str:
    """Strip what only a stand-alone SVG file needs, and what would leak into the rest of the page."""
    body = document[document.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;?\s*", "", body)
    body = body.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    head = (
        f'<svg class="plot" role="img" aria-label="{_attribute(label)}" viewBox="{box.group(1) if box else ""}" '
        f'style="max-width: {width * POINTS_PER_INCH * 4 / 3:.0f}px">'
    )
    return head + body.strip()


def _attribute(label: str) -> str:
    return label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
