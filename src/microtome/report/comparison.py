"""Several packages side by side on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microtome.errors import OptionError
from microtome.report import files, headline, plots, words
from microtome.report.html import environment
from microtome.report.view import ViewOf
from microtome.types import Interval


def write_comparison(folders: Sequence[Path], out: Path, view_of: ViewOf) -> Path:
    """Write one self-contained page that compares packages, and return its path.

    A table in the order given, and latency against the difference in the verdict's metric, one plot per metric.
    `view_of` gives what is a task's own. Raises OptionError without folders, ReadError when a `result.json` is missing,
    broken or of another schema, OutputError when the page cannot be written.
    """
    if not folders:
        raise OptionError("There is no package to compare.", "Name at least one package folder.")
    results = [files.read_result(Path(folder)) for folder in folders]
    names = _names([Path(folder) for folder in folders])
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title="Packages compared",
            version=words.NONE,
            rows=[_row(name, result, view_of) for name, result in zip(names, results, strict=True)],
            plots=_plots(names, results, view_of),
            notes=_notes(results),
            evidence=headline.EVIDENCE,
        )
    )
    return files.write_text(Path(out), page)


def _names(folders: list[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart."""
    resolved = [folder.resolve() for folder in folders]
    for depth in (1, 2, 3):
        names = ["/".join(folder.parts[-depth:]) for folder in resolved]
        if len(set(names)) == len(names):
            return [words.text(name) for name in names]
    return [words.text(folder) for folder in folders]


def _row(name: str, result: files.Result, view_of: ViewOf) -> dict[str, Any]:
    with words.reading(result, view_of(result["task"]).OWN):
        return _cells(name, result)


def _cells(name: str, result: files.Result) -> dict[str, Any]:
    metric = headline.main_metric(result)
    kind, word, _ = headline.verdict(result)
    parent, compressed = result["parent"], result["compressed"]
    difference = result["difference"].get(metric)
    scores = [
        words.score(words.interval(words.mapping(side.get("metrics")).get(metric)).value, metric)
        for side in (parent, compressed)
    ]
    requested = words.number(result["integer"].get("requested"))
    return {
        "name": name,
        "title": words.text(result.get("title")) if result.get("title") else "",
        "how": " · ".join(words.text(result[key]) for key in ("target", "recipe") if result.get(key)) or words.NONE,
        "kind": kind,
        "word": word,
        "bytes": words.size(compressed.get("bytes")),
        "smaller": words.times(words.ratio(parent.get("bytes"), compressed.get("bytes"))),
        "latency": words.milliseconds(compressed.get("latency_ms")),
        "faster": words.times(words.ratio(parent.get("latency_ms"), compressed.get("latency_ms"))),
        "metric": words.metric_name(metric) if metric else words.NONE,
        "scores": " → ".join(scores),
        "difference": words.change(words.interval(difference).value, metric),
        "spread": words.spread(difference, metric, signed=True),
        "integer": f"{words.count(result['integer'].get('executed') or 0)} of {words.count(requested)}"
        if requested is not None
        else words.NONE,
        "short": headline.shortfall(result) is not None,
    }


def _plots(names: list[str], results: list[files.Result], view_of: ViewOf) -> list[str]:
    """One plot per metric; the margin is drawn when all packages of the plot share it."""
    groups: dict[str, list[tuple[str, float, Interval]]] = {}
    limits: dict[str, set[float | None]] = {}
    shown: dict[str, files.Result] = {}
    for name, result in zip(names, results, strict=True):
        metric = headline.main_metric(result)
        latency = words.number(result["compressed"].get("latency_ms"))
        if metric and latency is not None:
            groups.setdefault(metric, []).append((name, latency, words.interval(result["difference"].get(metric))))
            with words.reading(result, view_of(result["task"]).OWN):
                limits.setdefault(metric, set()).add(words.limit(result["verdict"].get("margin"), metric))
            shown.setdefault(metric, result)
    drawn = []
    for place, (metric, points) in enumerate(groups.items()):
        limit = next(iter(limits[metric])) if len(limits[metric]) == 1 else None
        with words.reading(shown[metric], view_of(shown[metric]["task"]).OWN):
            drawn.append(plots.tradeoff(points, name=f"tradeoff{place}", metric=metric, limit=limit))
    return [plot for plot in drawn if plot]


def _notes(results: list[files.Result]) -> list[str]:
    """What makes the packages hard to compare."""
    checks = (
        ("parents", {result["parent"].get("sha256") for result in results}),
        ("tasks", {result["task"] for result in results}),
        ("metrics", {headline.main_metric(result) for result in results}),
        ("machines", {str(result["environment"].get("cpu")) for result in results}),
        ("numbers of evaluation cases", {str(result["counts"].get("evaluation")) for result in results}),
    )
    different = [name for name, values in checks if len(values) > 1]
    return [f"Compare with care: the packages have different {', '.join(different)}."] if different else []
