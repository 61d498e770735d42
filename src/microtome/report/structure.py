"""The section that says what was removed where, and how far a loop or a search went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.report import structure_plots, words
from microtome.report.files import Result
from microtome.report.structure_plots import Found, Round, Width

FEW = 0.01  # share of weights: with fewer zeros than that a network is not called sparse
COSTS = (("latency_ms", "latency, ms"), ("macs", "multiply-accumulates"), ("bytes", "bytes"), ("parameters", "weights"))


def structure(result: Result) -> dict[str, Any]:
    """Everything that the section shows; `shown` is False where the result holds nothing of it."""
    found = result["structure"]
    rows = [row for row in found.get("layers") or [] if isinstance(row, Mapping)]
    parts: dict[str, Any] = {
        **_widths(rows),
        "said": _said(found),
        "alike": found.get("alike") is not False,
        "trajectory": _trajectory(result["trajectory"], str(result["verdict"].get("metric") or "")),
        "search": _search(result["search"]),
    }
    return {**parts, "shown": any(parts[name] for name in ("widths", "trajectory", "search"))}


def _widths(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The picture of the network, and the table behind it."""
    drawn, table = [], []
    for row in rows:
        sides = [words.mapping(row.get(side)) for side in ("parent", "compressed")]
        before, after = (words.number(side.get("narrowest", side.get("outputs"))) for side in sides)
        links = words.number(sides[1].get("links")) or 1
        channels = f"{_channels(before)} → {_channels(after)}" + (f" ({links:.0f} layers)" if links > 1 else "")
        if before is not None or after is not None:
            drawn.append(Width(words.text(row.get("name")), before, after, channels))
        weights = [words.number(side.get("weights")) for side in sides]
        table.append(
            {
                "name": words.text(row.get("name")),
                "op": words.text(row.get("op")),
                "channels": channels,
                "weights": " → ".join(_count(value) for value in weights),
                "nonzero": _count(words.number(sides[1].get("nonzero"))),
                "macs": " → ".join(_count(words.number(side.get("macs"))) for side in sides),
            }
        )
    shown = drawn[: structure_plots.MAX_LAYERS]
    return {
        "widths": structure_plots.widths(shown, name="widths"),
        "widths_more": len(drawn) - len(shown),
        "table": table,
    }


def _channels(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f}"


def _count(value: float | None) -> str:
    return words.NONE if value is None else f"{value:,.0f}"


def _said(found: Mapping[str, Any]) -> list[str]:
    """One sentence for each total that fell."""
    titles = {"parameters": "weights", "nonzero": "weights that are not zero", "macs": "multiply-accumulates"}
    said = []
    last = 0.0
    for key, title in titles.items():
        pair = found.get(key)
        numbers = [words.number(value) for value in pair] if isinstance(pair, list) else []
        if len(numbers) == 2 and numbers[0] and numbers[1] and numbers[1] < numbers[0]:
            gone = 1 - numbers[1] / numbers[0]
            if key == "nonzero" and gone < last + FEW:
                continue
            last = gone
            said.append(f"{_count(numbers[0])} → {_count(numbers[1])} {title}: {words.share(gone)} removed.")
    return said


def _trajectory(rows: list[Mapping[str, Any]], metric: str) -> str:
    """The loop's course: its score against the share of weights that are left."""
    numbers = [(words.number(row.get("nonzero")), words.number(row.get("score")), row) for row in rows]
    known = [(cost, score, row) for cost, score, row in numbers if cost is not None and score is not None]
    if not known or not known[0][0]:
        return ""
    chosen = [row.get("accepted") is True for *_, row in known]
    last = max((place for place, accepted in enumerate(chosen) if accepted), default=0)
    rounds = [
        Round(cost / known[0][0], score, row.get("accepted") is True, place == last)
        for place, (cost, score, row) in enumerate(known)
    ]
    floor = words.number(known[0][2].get("floor"))
    what, title = (
        "share of the weights that is left",
        f"{words.metric_name(metric) if metric else 'score'}, tuning patients",
    )
    return structure_plots.trajectory(rounds, floor=floor, what=what, score=title, name="trajectory")


def _search(rows: list[Mapping[str, Any]]) -> str:
    """The front of an architecture search: its score against what the networks cost."""
    for key, what in COSTS:
        found = []
        for row in rows:
            cost, score = words.number(row.get(key)), words.number(row.get("score"))
            if cost is not None and score is not None:
                group = words.text(row.get("group")) if row.get("group") else "search"
                found.append(Found(words.text(row.get("name")), cost, score, group, row.get("chosen") is True))
        if found:
            return structure_plots.search(found, what=what, score="score on the tuning patients", name="search")
    return ""
