"""`report`: the page of a package written again, or one page that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microtome.report.card import write_model_card
from microtome.report.comparison import write_comparison
from microtome.report.html import write_report
from microtome.tasks import task


def report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write a package's `report.html` again, or with `out`, or for several packages, a page that compares them.

    Args:
        folders: packages.
        out: the page to write; None is `report.html` in the one package, `comparison.html` here for several.

    Returns:
        The page.

    Raises:
        ReadError: a package is missing or broken.
        OutputError: the page cannot be written.
    """
    places = [Path(folder) for folder in folders]
    if len(places) == 1 and out is None:
        return write_report(places[0], task)
    return write_comparison(places, Path(out or "comparison.html"), task)


def write_pages(folder: Path, *, card: bool = True) -> None:
    """Write what people read into a package folder: the report, and the model card beside it.

    Raises:
        ReadError: `result.json` is missing or broken.
        OutputError: a page cannot be written.
    """
    write_report(folder, task)
    if card:
        write_model_card(folder, task)
