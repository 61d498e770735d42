"""The engineering half of the page: speed, size, layers and provenance, ready for the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microtome.report import files, plots, words
from microtome.report.files import Result

MANY_LAYERS = 40  # rows; above, the whole table is folded away
MANY_RANGES = 20  # activations; above, their plot is folded away
FLOATS = {"f32", "fp32", "float32", "f16", "fp16", "bf16", "f64"}


def speed(result: Result) -> dict[str, Any]:
    """Bars of latency and bytes of every run, and what integer arithmetic gained over floating point."""
    runs = result["runs"] or _two_runs(result)
    slowest = max((words.number(run.get("latency_ms")) or 0.0 for run in runs), default=0.0)
    largest = max((words.number(run.get("bytes")) or 0.0 for run in runs), default=0.0)
    baseline = result["parent"].get("latency_ms")
    rows = [
        {
            "name": words.text(run.get("name")),
            "compressed": run.get("compressed") is True,
            "integer": _integer(run.get("precision")),
            "latency": words.milliseconds(run.get("latency_ms")),
            "latency_bar": percent(run.get("latency_ms"), slowest),
            "faster": words.times(words.ratio(baseline, run.get("latency_ms"))),
            "bytes": words.size(run.get("bytes")),
            "bytes_bar": percent(run.get("bytes"), largest),
        }
        for run in runs
    ]
    tried = _placement(result["placement"])
    return {"rows": rows, "notes": _notes(result), "parameters": _parameters(result), "placement": tried}


def _placement(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was measured to decide where integers pay, in its order."""
    return [
        {
            "change": words.text(row.get("change")),
            "before": words.milliseconds(row.get("before_ms")),
            "after": words.milliseconds(row.get("after_ms")),
            "kept": row.get("kept") is True,
            "error": str(row.get("error") or ""),
        }
        for row in rows
    ]


def _two_runs(result: Result) -> list[dict[str, Any]]:
    """Parent and compressed as runs, where a result lists none."""
    sides = (("parent", "eager f32", "f32"), ("compressed", words.text(result.get("recipe")), result.get("recipe")))
    return [
        {"name": name, "precision": precision, "compressed": side == "compressed", **_measured(result[side])}
        for side, name, precision in sides
    ]


def _measured(side: Mapping[str, Any]) -> dict[str, Any]:
    return {"latency_ms": side.get("latency_ms"), "bytes": side.get("bytes")}


def _integer(precision: Any) -> bool:
    return str(precision or "").lower().startswith(("int", "uint", "i8", "u8", "i4", "u4", "w8", "w4"))


def percent(value: Any, most: float) -> float:
    """Length of a bar: 0 to 100, at least 0.5 where there is something to see."""
    found = words.number(value)
    if found is None or found <= 0 or most <= 0:
        return 0.0
    return round(max(0.5, 100 * found / most), 2)


def _notes(result: Result) -> list[dict[str, Any]]:
    """How the integer network compares with floating point on the same runtime; `bad` marks no gain."""
    runs = result["runs"]
    chosen = next((run for run in runs if run.get("compressed") is True), None)
    chosen = chosen or next((run for run in runs if _integer(run.get("precision"))), None)
    if chosen is None or not _integer(chosen.get("precision")):
        return []
    precision = words.text(chosen.get("precision"))
    notes = []
    for run in runs:
        other = str(run.get("precision") or "").lower()
        if run is chosen or run.get("runtime") != chosen.get("runtime") or other not in FLOATS:
            continue
        gain = words.ratio(run.get("latency_ms"), chosen.get("latency_ms"))
        if gain is None:
            continue
        name = words.text(run.get("precision"))
        if gain > 1:
            line = f"{precision} is {words.times(gain)} as fast as the uncompressed network in {name} on this runtime."
        else:
            line = (
                f"{precision} does not beat {name} here: the uncompressed network in {name} on the same runtime takes "
                f"{words.milliseconds(run.get('latency_ms'))}, {precision} "
                f"{words.milliseconds(chosen.get('latency_ms'))}. What remains is the smaller file."
            )
        notes.append({"text": line, "bad": gain <= 1})
    return notes


def _parameters(result: Result) -> str:
    before, after = (words.number(result[side].get("parameters")) for side in ("parent", "compressed"))
    if before is None and after is None:
        return ""
    return f"Parameters: parent {words.count(before)}, compressed {words.count(after)}."


def layers(result: Result) -> dict[str, Any]:
    """The table of layers, those among them that did not run as asked, and the quantizers' ranges."""
    found = result["layers"]
    slowest = max((words.number(layer.get("latency_ms")) or 0.0 for layer in found), default=0.0)
    rows = [_layer(layer, slowest) for layer in found]
    ran = Counter(row["executed"] for row in rows)
    return {
        "rows": rows,
        "failed": [row for row in rows if row["state"] == "failed"],
        "folded": len(rows) > MANY_LAYERS,
        "ran": [f"{amount} in {name}" for name, amount in ran.most_common() if name != words.NONE],
        "requested": words.count(result["integer"].get("requested")),
        "executed": words.count(result["integer"].get("executed")),
        **_quantizers(result),
    }


def _layer(layer: Mapping[str, Any], slowest: float) -> dict[str, Any]:
    requested, executed = words.text(layer.get("requested")), words.text(layer.get("executed"))
    state = "as asked"
    if words.NONE in (requested, executed):
        state = "unknown"
    elif requested != executed:
        state = "failed" if _integer(requested) and not _integer(executed) else "other"
    return {
        "name": words.text(layer.get("name")),
        "op": words.text(layer.get("op")),
        "requested": requested,
        "executed": executed,
        "state": state,
        "kernel": words.text(layer.get("kernel")),
        "bytes": words.size(layer.get("bytes")),
        "latency": words.significant(layer.get("latency_ms")),
        "bar": percent(layer.get("latency_ms"), slowest),
    }


def _quantizers(result: Result) -> dict[str, Any]:
    """Rows of all quantizers, and the plot of the activations' ranges."""
    drawn, rows = [], []
    for entry in result["quantizers"]:
        low, high = words.number(entry.get("low")), words.number(entry.get("high"))
        if entry.get("kind") == "activation" and low is not None and high is not None:
            drawn.append((words.text(entry.get("name")), low, high))
        rows.append(
            {
                "name": words.text(entry.get("name")),
                "kind": words.text(entry.get("kind")),
                "qtype": words.text(entry.get("qtype")),
                "low": words.significant(low, 4),
                "high": words.significant(high, 4),
                "observer": words.text(entry.get("observer")),
            }
        )
    more = max(0, len(drawn) - plots.MAX_RANGES)
    return {
        "quantizers": rows,
        "ranges": plots.ranges(drawn, name="ranges"),
        "ranges_more": more,
        "ranges_folded": len(drawn) > MANY_RANGES,
    }


def provenance(result: Result, folder: Path) -> dict[str, Any]:
    """Where the numbers come from: machine, versions, counts, time, memory and hashes."""
    environment = dict(result["environment"])
    versions = words.mapping(environment.pop("versions", None))
    longest = max((words.number(value) or 0.0 for value in result["seconds"].values()), default=0.0)
    return {
        "environment": [(_title(name), _flat(value)) for name, value in environment.items() if value is not None],
        "versions": [(words.text(name), words.text(value)) for name, value in versions.items()],
        "counts": _counts(result["counts"]),
        "split": _split(folder),
        "seconds": [
            {"name": words.text(name), "time": words.seconds(value), "bar": percent(value, longest)}
            for name, value in result["seconds"].items()
        ],
        "memory": [
            (_title(name.removesuffix("_mib")), f"{words.count(value)} MiB")
            for name, value in result["memory"].items()
            if words.number(value) is not None
        ],
        "hashes": [
            (side, words.text(result[side]["sha256"]))
            for side in ("parent", "compressed")
            if result[side].get("sha256")
        ],
        "file": words.text(result["compressed"].get("file")) if result["compressed"].get("file") else "",
        "warnings": [words.text(line, 1000) for line in result["warnings"] if line],
    }


def _title(name: str) -> str:
    readable = words.text(name).replace("_", " ")
    return {"cpu": "CPU", "os": "Operating system", "isa": "Instruction sets"}.get(readable, readable.capitalize())


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(words.text(entry) for entry in value) or words.NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{words.text(name)} {words.text(entry)}" for name, entry in value.items()) or words.NONE
    return words.text(value)


SAME = {
    "in_train": "Evaluated images that are also for training",
    "in_tuning": "Evaluated images that are also for tuning",
    "repeated": "Evaluated images that repeat another",
    "other_label": "Evaluated images with another label elsewhere",
    "taken_out_of_train": "Training cases taken out: the same images",
    "taken_out_of_tuning": "Tuning cases taken out: the same images",
    "taken_out_of_calibration": "Calibration cases taken out: the same images",
}


def _counts(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("calibration", "tuning", "evaluation", "patients", "failed")
    titles = {
        "calibration": "Calibration cases",
        "tuning": "Tuning cases",
        "evaluation": "Evaluation cases",
        "patients": "Patients evaluated",
        "failed": "Cases that failed",
    }
    found = [(titles[name], words.count(counts[name])) for name in names if words.number(counts.get(name)) is not None]
    same = words.mapping(counts.get("same_images"))
    return found + [(SAME[name], words.count(same[name])) for name in SAME if words.number(same.get(name))]


def _split(folder: Path) -> str:
    """What provenance.json found when it compared the roles; empty where there is none, or it does not say."""
    path = folder / "provenance.json"
    record = words.mapping(words.mapping(files.read_json(path)).get("cohort")) if path.exists() else {}
    disjoint, lists = record.get("disjoint_by_patient"), "provenance.json beside this page lists them."
    if disjoint is True:
        return f"Calibration, tuning and evaluation cases are disjoint, by patient and by what images hold; {lists}"
    return "" if disjoint is None else f"Some patients or images are both calibrated or tuned on and evaluated; {lists}"
