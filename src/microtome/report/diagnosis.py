"""The section that says where accuracy goes: layers, grids, plans, recipes that were tried, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.report import diagnosis_plots, drawing, words
from microtome.report.diagnosis_plots import Choice, GridView, LayerLoss
from microtome.report.files import Result

WORST_LAYERS = 3  # and never more than a third of them
WORST_GRIDS = 9
STANDS_OUT_DB = 6.0  # four times the noise power of the next layer


def diagnosis(result: Result) -> dict[str, Any]:
    """Everything that the section shows; `shown` is False where the result holds nothing of it."""
    parts: dict[str, Any] = {
        **_layers(result["sensitivity"]),
        "grids": _grids(result["quantizers"]),
        "front": _front(result["pareto"]),
        "trials": _trials(result["trials"]),
        "training": _training(result["training"]),
    }
    names = ("layers", "grids", "front", "trials", "training")
    return {**parts, "shown": any(parts[name] for name in names)}


def _layers(found: Mapping[str, Any]) -> dict[str, Any]:
    """The bars, in the network's order, and what to make of them."""
    rows = found.get("layers")
    known = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    measured = [(value, row) for row in known if (value := words.number(row.get("alone_db"))) is not None]
    ranked = sorted(range(len(measured)), key=lambda place: measured[place][0])
    worst = set(ranked[: max(1, min(WORST_LAYERS, len(ranked) // 3))])
    drawn = sorted(ranked[: diagnosis_plots.MAX_LAYERS])
    losses = [
        LayerLoss(
            words.text(measured[place][1].get("name")),
            measured[place][0],
            words.number(measured[place][1].get("accumulated_db")),
            bits_of(measured[place][1].get("bits")),
            place in worst,
        )
        for place in drawn
    ]
    ordered = [measured[place] for place in ranked]
    return {
        "layers": diagnosis_plots.layer_losses(losses, name="losses"),
        "layers_more": len(measured) - len(drawn),
        "layers_said": _said(ordered, words.number(found.get("network_db"))) if ordered else [],
        "incomplete": found.get("complete") is False,
        "own": found.get("reference") == "own",
    }


def _said(ranked: list[tuple[float, Mapping[str, Any]]], whole: float | None) -> list[str]:
    """Sentences on the worst layers, worst first."""
    first, row = ranked[0]
    name, bits = words.text(row.get("name")), bits_of(row.get("bits"))
    line = f"Most is lost in {name} ({bits}): quantized alone, it leaves {words.plain(first, 1)} dB at the output."
    if whole is not None:
        line += f" All layers together leave {words.plain(whole, 1)} dB."
    said = [line]
    if len(ranked) > 1 and ranked[1][0] - first >= STANDS_OUT_DB:
        said.append(
            f"This layer stands out: the next one leaves {words.plain(ranked[1][0], 1)} dB. More bits for it, or "
            f"leaving it in float (--skip {name}), should bring most of it back."
        )
    elif len(ranked) > 1:
        said.append(
            "No single layer stands out: the loss is spread. A better method, or more bits for several layers, helps "
            "more than an exception for one."
        )
    return said


def bits_of(value: Any) -> str:
    """`w4 a8` for [4, 8]; a width that is null is float."""
    pair = value if isinstance(value, list) and len(value) == 2 else [None, None]
    shown = [(letter, words.number(bits)) for letter, bits in zip("wa", pair, strict=True)]
    return " ".join(f"{letter}{bits:.0f}" for letter, bits in shown if bits is not None) or "float"


def _grids(rows: list[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The grids with the least signal to noise, worst first."""
    ranked = sorted(
        ((value, row) for row in rows if (value := words.number(row.get("sqnr_db"))) is not None),
        key=lambda pair: pair[0],
    )
    panels: list[dict[str, str]] = []
    for db, row in ranked:
        view = _view(row)
        name, kind = words.text(row.get("name")), words.text(row.get("kind"))
        title = f"{words.shorten(name, 34)} · {'input' if kind == 'activation' else kind}"
        svg = diagnosis_plots.grid_view(view, name=f"grid{len(panels)}", label=f"Values of {title}") if view else ""
        if not svg:
            continue
        bits = words.number(row.get("bits"))
        details = [] if bits is None else [f"{bits:.0f} bits"]
        details.append(f"{words.plain(db, 1)} dB")
        if words.number(row.get("clipped")) is not None:
            details.append(f"{words.share(row['clipped'])} clipped")
        panels.append({"svg": svg, "title": title, "detail": ", ".join(details)})
        if len(panels) == WORST_GRIDS:
            break
    return panels


def _view(row: Mapping[str, Any]) -> GridView | None:
    bars = words.mapping(row.get("histogram"))
    counts = bars.get("counts")
    numbers = [words.number(value) for value in (bars.get("low"), bars.get("high"), row.get("low"), row.get("high"))]
    if not isinstance(counts, list) or None in numbers:
        return None
    low, high, grid_low, grid_high = (value for value in numbers if value is not None)
    return GridView([words.number(count) or 0.0 for count in counts], (low, high), (grid_low, grid_high))


def _front(rows: list[Mapping[str, Any]]) -> dict[str, str]:
    """Size against loss, or against the metric where there is no loss; empty without points."""
    key = "loss" if any(words.number(row.get("loss")) is not None for row in rows) else "metric"
    choices = []
    for row in rows:
        size, value = words.number(row.get("bytes")), words.number(row.get(key))
        if size is not None and value is not None:
            choices.append(Choice(words.text(row.get("name")), size, value, row.get("chosen") is True))
    what = "estimated loss" if key == "loss" else "metric"
    svg = diagnosis_plots.front(choices, name="front", what=what)
    better = "lower" if key == "loss" else "higher"
    return {"svg": svg, "better": better} if svg else {}


def _trials(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `auto` tried, in its order."""
    shown = []
    for row in rows:
        metric = str(row.get("metric") or "")
        lower = words.change(row.get("lower", row.get("low")), metric)
        side = "upper" if words.about(metric).lower_is_better else "lower"
        shown.append(
            {
                "name": words.text(row.get("name")),
                "chosen": row.get("chosen") is True,
                "verdict": _verdict(row),
                "difference": words.change(row.get("difference"), metric),
                "lower": "" if lower == words.NONE else f"{side} bound {lower}",
                "latency": words.milliseconds(row.get("latency_ms")),
                "bytes": words.size(row.get("bytes")),
                "seconds": words.seconds(row.get("seconds")),
                "reason": words.text(row.get("reason")),
            }
        )
    return shown


def _verdict(row: Mapping[str, Any]) -> str:
    if words.number(row.get("latency_ms")) is None:
        return words.NONE  # it could not run
    verdict = row.get("verdict")
    return "non-inferior" if verdict is True else "inferior" if verdict is False else "not shown"


def _training(found: Mapping[str, Any]) -> str:
    """Loss of training, and on the tuning cases."""

    def numbers(name: str) -> list[float | None]:
        values = found.get(name)
        return [words.number(value) for value in values] if isinstance(values, list) else []

    steps = numbers("steps")
    if not steps or None in steps:
        return ""
    curves = [("training", numbers("loss"), drawing.PARENT), ("tuning cases", numbers("monitor"), drawing.COMPRESSED)]
    return diagnosis_plots.training([step for step in steps if step is not None], curves, name="training")
