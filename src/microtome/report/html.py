"""`result.json` → `report.html`: one page that needs no network, no script and no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from microtome.report import accuracy, diagnosis, files, headline, structure, targets, technical, words
from microtome.report.view import View, ViewOf

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """Templates of the pages: everything is escaped, and a name that is missing raises instead of staying empty."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_report(folder: Path, view_of: ViewOf) -> Path:
    """Write `report.html` into a package folder and return its path.

    `view_of` gives what is the task's own. Reads `result.json` and, where it is there, `examples.npz`.
    Fields that are missing or null leave their part of
    the page out. Raises ReadError when a file is missing, broken or of another schema, OutputError when the page
    cannot be written.
    """
    folder = Path(folder)
    result = files.read_result(folder)
    arrays = files.read_examples(folder, [str(entry.get("case")) for entry in result["examples"]])
    view = view_of(result["task"])
    with words.reading(result, view.OWN):
        page = environment().get_template("report.html.j2").render(page_of(result, arrays, folder, view))
    return files.write_text(folder / "report.html", page)


def page_of(result: files.Result, arrays: files.Examples, folder: Path, view: View) -> dict[str, Any]:
    """Everything that the report's template shows, by section."""
    return {
        "title": words.text(result.get("title") or "Compressed network"),
        "version": words.text(result.get("microtome") or ""),
        "about": about(result),
        "head": headline.headline(result),
        "accuracy": accuracy.accuracy(result, view),
        "cases": accuracy.case_table(result, view),
        "examples": accuracy.examples(result, arrays),
        "speed": technical.speed(result),
        "targets": targets.targets(result),
        "layers": technical.layers(result),
        "diagnosis": diagnosis.diagnosis(result),
        "structure": structure.structure(result),
        "subgroups": accuracy.subgroups(result),
        "provenance": technical.provenance(result, folder),
    }


def about(result: files.Result) -> list[tuple[str, str]]:
    """What was compressed, how and when, as names and values."""
    classes = ", ".join(words.text(name) for name in result["classes"])
    entries = (
        ("Task", result.get("task")),
        ("Target", result.get("target")),
        ("Recipe", result.get("recipe")),
        ("Classes", classes),
        ("Created", str(result.get("created") or "").replace("T", " ").replace("Z", " UTC")),
    )
    return [(name, words.text(value)) for name, value in entries if value]
