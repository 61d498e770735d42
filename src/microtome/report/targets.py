"""A package's targets beside each other, and how closely each runtime computes what its network does."""

from __future__ import annotations

from typing import Any

from microtome.report import words
from microtome.report.files import Result

VERDICTS = {True: "non-inferior", False: "inferior", None: "undecided"}


def targets(result: Result) -> dict[str, Any]:
    """Return a row for each target, and the values that the first one was compared in; nothing of a single one."""
    listed = [(name, words.mapping(line)) for name, line in result["targets"].items()]
    return {
        "shown": len(listed) > 1 or bool(result["failed_targets"]),
        "rows": [_row(name, line) for name, line in listed],
        "failed": [(words.text(name), words.text(why, 1000)) for name, why in result["failed_targets"].items()],
        "first": words.text(result.get("target")),
        "rungs": [_rung(rung) for rung in result["rungs"]],
    }


def _row(name: str, line: Any) -> dict[str, str]:
    verdict, integer = words.mapping(line.get("verdict")), words.mapping(line.get("integer"))
    agreement, parity = words.mapping(line.get("agreement")), words.mapping(line.get("parity"))
    measured = line.get("measured") is not False
    return {
        "name": words.text(name),
        "verdict": VERDICTS.get(verdict.get("non_inferior"), "") if measured else "not measured here",
        "latency": words.milliseconds(line.get("latency_ms")),
        "bytes": words.size(line.get("bytes")),
        "integer": f"{integer['executed']} of {integer['requested']}" if integer.get("requested") else words.NONE,
        "agreement": words.share(agreement.get("value")),
        "parity": _parity(parity),
        "departs": words.text(parity["departs"]) if parity.get("departs") else "",
    }


def _parity(parity: Any) -> str:
    if not parity:
        return words.NONE
    return f"{words.significant(parity.get('largest'))} at most, {words.significant(parity.get('mean'))} on average"


def _rung(rung: Any) -> dict[str, Any]:
    names = ("step", "own_mean", "own_largest", "mean", "largest")
    return {
        "layer": words.text(rung.get("layer")),
        "departs": rung.get("departs") is True,
        **{name: words.significant(rung.get(name)) for name in names},
    }
