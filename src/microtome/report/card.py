"""`result.json` → `MODEL_CARD.md`. Says what the result says, and marks what only a manufacturer can fill in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from microtome.errors import ReadError
from microtome.report import accuracy, files, headline, technical, words
from microtome.report.html import TEMPLATES, about
from microtome.report.view import ViewOf


def write_model_card(folder: Path, view_of: ViewOf) -> Path:
    """Write `MODEL_CARD.md` into a package folder and return its path.

    `view_of` gives what is the task's own. Reads `result.json` and, where it is there, `pipeline.json`.
    Raises ReadError when one of them is broken or the result is missing, OutputError when the card cannot be written.
    """
    folder = Path(folder)
    result = files.read_result(folder)
    view = view_of(result["task"])
    with words.reading(result, view.OWN):
        card = (
            _environment()
            .get_template("card.md.j2")
            .render(
                title=words.text(result.get("title") or "Compressed network"),
                about=about(result),
                version=words.text(result.get("microtome")),
                head=headline.headline(result),
                accuracy=accuracy.accuracy(result, view),
                subgroups=accuracy.subgroups(result),
                speed=technical.speed(result),
                integer=technical.layers(result),
                provenance=technical.provenance(result, folder),
                pipeline=_pipeline(folder),
                empty=words.NONE,
                others=[
                    name for name in ("report.html", "provenance.json", "pipeline.json") if (folder / name).exists()
                ],
            )
        )
    return files.write_text(folder / "MODEL_CARD.md", card)


def _environment() -> jinja2.Environment:
    """Templates of Markdown: every value is escaped for Markdown, which lets HTML through."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # `finalize` escapes for Markdown instead
        finalize=markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def markdown(value: Any) -> str:
    """Plain text that Markdown shows as it is: no HTML, links, emphasis or table cells come of it."""
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(escaped.split()))


def _pipeline(folder: Path) -> list[tuple[str, str]]:
    """The declared fields of `pipeline.json` that are set, as names and values."""
    path = folder / "pipeline.json"
    if not path.exists():
        return []
    declared = files.read_json(path)
    if not isinstance(declared, Mapping):
        raise ReadError(f"{path} holds no JSON object.", files.HINT)
    return [(words.text(name).replace("_", " "), _flat(value)) for name, value in declared.items() if _is_set(value)]


def _is_set(value: Any) -> bool:
    return value is not None and value not in ([], "")


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{words.text(name)}: {_flat(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_flat(entry) for entry in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else words.text(value)
