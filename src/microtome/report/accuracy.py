"""The clinical half of the page: metrics, cases, examples and subgroups, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from microtome.metrics import base, distinct, part
from microtome.report import plots, words
from microtome.report.files import Examples, Result
from microtome.report.headline import lost, main_metric
from microtome.report.pictures import example_panels, structure_color, structures
from microtome.report.view import View

MAX_FOREST = 16  # rows; above, only the structures of the verdict's metric are drawn
MAX_CASES = 500  # rows of the table of all cases
KINDS = {"worst": "Worst", "typical": "Typical", "best": "Best"}


def metrics(result: Result) -> list[str]:
    """All metrics in their first order, each followed by its structures."""
    sources = [words.mapping(result[side].get("metrics")) for side in ("parent", "compressed")]
    names = list(dict.fromkeys(str(name) for source in (*sources, result["difference"]) for name in source))
    order = {first: place for place, first in enumerate(dict.fromkeys(base(name) for name in names))}
    return sorted(names, key=lambda name: (order[base(name)], "/" in name))


def accuracy(result: Result, view: View) -> dict[str, Any]:
    """Table, forest plots and sentences of the section on accuracy."""
    chosen = main_metric(result)
    names = distinct(metrics(result), chosen)
    rows = [_metric_row(result, metric, strong=metric == chosen) | _tags(result, metric) for metric in names]
    return {
        "rows": rows,
        "forests": [plot for plot in _forests(result, names, chosen) if plot],
        "drawings": [plot for plot in view.drawings(result, _pairs(result, view)) if plot["svg"]],
        "agreement": _agreement(result, view),
        "empty": _empty(result),
        "rule": view.RULE,
        "operating_point": _operating_point(result),
        "explained": {
            words.metric_name(name): words.about(name).words
            for name in dict.fromkeys(base(name) for name in names)
            if words.about(name).words
        },
    }


def _metric_row(result: Mapping[str, Any], metric: str, *, strong: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": words.structure(metric) or words.metric_name(metric),
        "inner": "/" in metric,
        "strong": strong,
        "lower": words.about(metric).lower_is_better and "/" not in metric,
    }
    for side in ("parent", "compressed"):
        value = words.mapping(words.mapping(result.get(side)).get("metrics")).get(metric)
        row[side] = words.score(words.interval(value).value, metric)
        row[f"{side}_spread"] = words.spread(value, metric)
    value = words.mapping(result.get("difference")).get(metric)
    row["difference"] = words.change(words.interval(value).value, metric)
    row["difference_spread"] = words.spread(value, metric, signed=True)
    return row


def _tags(result: Result, metric: str) -> dict[str, bool]:
    """Whether a metric lost more than its margin, and whether the means leave its structure out."""
    aside = "/" in metric and part(metric) in (result["verdict"].get("left_out") or ())
    return {"lost": metric in lost(result), "aside": aside}


def _forests(result: Result, names: list[str], chosen: str) -> list[str]:
    shares = [name for name in names if not words.unit(name)]
    if len(shares) > MAX_FOREST:
        shares = [name for name in shares if "/" not in name or base(name) == base(chosen)]
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in (name for name in names if name in shares or words.unit(name)):
        groups.setdefault((words.unit(name), words.about(name).lower_is_better), []).append(name)
    drawn = []
    for place, ((unit, lower_is_better), group) in enumerate(groups.items()):
        worse = "right is worse" if lower_is_better else "left of zero is worse"
        xlabel = f"compressed − parent{f' in{unit}' if unit else ''}; {worse}"
        drawn.append(
            plots.forest(
                _forest_rows(result, group, chosen),
                name=f"forest{place}",
                xlabel=xlabel,
                label=f"Difference per metric with 95 % intervals: {xlabel}",
                limit=words.limit(result["verdict"].get("margin"), chosen) if chosen in group else None,
            )
        )
    return drawn


def _forest_rows(result: Result, names: list[str], chosen: str) -> list[plots.ForestRow]:
    return [
        plots.ForestRow(words.metric_name(name), words.interval(result["difference"].get(name)), name == chosen)
        for name in names
    ]


def _pairs(result: Result, view: View) -> list[tuple[float | None, float | None]]:
    """The number of every case, of both networks."""
    return [
        (view.case_value(result, case, "parent"), view.case_value(result, case, "compressed"))
        for case in result["cases"]
    ]


def _agreement(result: Result, view: View) -> str:
    value = words.interval(result["agreement"]).value
    if value is None:
        return ""
    what, noun = view.AGREEMENT
    what = what.format(voxels="pixels" if result.get("length_unit") == "px" else "voxels")
    spread = result["agreement"]
    low, high = words.number(spread.get("low")), words.number(spread.get("high"))
    between = f" ({words.share(low)} to {words.share(high)})" if low is not None and high is not None else ""
    return f"{words.share(value)}{between} {what} the {noun} that the parent gives them."


def _empty(result: Result) -> str:
    """The sentence that counts empty references; empty for classification."""
    counted = result["counts"].get("empty_reference")
    if isinstance(counted, Mapping) and counted:
        parts = ", ".join(f"{words.text(name)} {words.count(amount)}" for name, amount in counted.items())
        return f"Cases with an empty reference, per structure: {parts}."
    if words.number(counted) is not None:
        return f"Cases with an empty reference: {words.count(counted)}."
    return ""


def _operating_point(result: Result) -> str:
    point = result["operating_point"]
    threshold = words.number(point.get("threshold"))
    if threshold is not None:
        sentence = f"Operating point: score ≥ {threshold:.4g}"
    elif isinstance(point.get("thresholds"), list):
        limits = zip(result["classes"], map(words.number, point["thresholds"]), strict=False)
        each = (f"{words.text(name)} {'not fixed' if limit is None else f'≥ {limit:.4g}'}" for name, limit in limits)
        sentence = f"Operating points: {', '.join(each)}"
    else:
        return ""
    if point.get("rule"):
        sentence += f", rule “{words.text(point['rule'])}”"
    if point.get("fixed_on"):
        sentence += f", fixed on {words.text(point['fixed_on'])}"
    measured = words.mapping(result["parent"].get("metrics"))
    what = "Sensitivity and specificity" if "sensitivity" in measured else "Found and false findings"
    return f"{sentence}. {what} of both networks are taken there."


def case_table(result: Result, view: View) -> dict[str, Any]:
    """All cases, those that matter most to the task first."""
    rows = []
    for case, (before, after) in zip(result["cases"], _pairs(result, view), strict=True):
        moved = None if before is None or after is None else after - before
        rows.append((moved, case, before, after))
    rows.sort(key=lambda row: np.inf if row[0] is None else view.worst_first(row[0]))
    metric = view.case_title(result)
    shown = [
        {
            "case": words.text(case.get("case")),
            "label": class_name(result, case.get("label")),
            "parent": words.score(before, metric),
            "compressed": words.score(after, metric),
            "difference": words.change(moved, metric),
            "agreement": words.share(case.get("agreement")),
        }
        for moved, case, before, after in rows[:MAX_CASES]
    ]
    what = words.metric_name(metric)
    return {"rows": shown, "total": len(rows), "what": what[:1].upper() + what[1:] or "Metric"}


def class_name(result: Result, label: Any) -> str:
    """The name of class number `label`, the number itself where it has no name, a dash where there is none."""
    place = words.number(label)
    if place is None:
        return words.NONE
    classes = result["classes"]
    return words.text(classes[int(place)]) if 0 <= place < len(classes) else str(int(place))


def examples(result: Result, arrays: Examples) -> list[dict[str, Any]]:
    """The example cases, worst first, with panels and a legend of the structures drawn."""
    order = list(KINDS)
    entries = sorted(
        result["examples"], key=lambda entry: order.index(entry["kind"]) if entry.get("kind") in order else len(order)
    )
    shown = []
    for entry in entries:
        panels = arrays.get(str(entry.get("case")), {})
        maps = [array for name, array in panels.items() if name != "image" and array.dtype.kind != "f"]
        drawn = {label for array in maps for label in structures(array)}
        place = words.number(entry.get("slice"))
        shown.append(
            {
                "case": words.text(entry.get("case")),
                "kind": KINDS.get(str(entry.get("kind")), words.text(entry.get("kind"))),
                "worst": entry.get("kind") == "worst",
                "text": words.text(entry.get("text")) if entry.get("text") else "",
                "slice": "" if place is None else f"slice {int(place)}",
                "panels": example_panels(panels),
                "legend": [(structure_color(label), class_name(result, label)) for label in sorted(drawn)],
            }
        )
    return shown


def subgroups(result: Result) -> list[dict[str, Any]]:
    """One table and forest plot per subgroup column, of the main metric."""
    metric = main_metric(result)
    shown = []
    for place, (column, groups) in enumerate(result["subgroups"].items()):
        rows, lines = [], []
        for name, group in words.mapping(groups).items():
            entry = words.mapping(group)
            plain = {side: {"metrics": _metrics_of(entry.get(side))} for side in ("parent", "compressed")}
            row = _metric_row({**plain, "difference": entry.get("difference")}, metric, strong=False)
            rows.append({**row, "name": words.text(name), "cases": words.count(entry.get("cases"))})
            difference = words.interval(words.mapping(entry.get("difference")).get(metric))
            lines.append(plots.ForestRow(words.text(name), difference))
        if rows:
            label = f"Difference in {words.metric_name(metric)} by {words.text(column)}"
            svg = plots.forest(
                lines,
                name=f"group{place}",
                xlabel=f"difference in {words.metric_name(metric)}",
                label=label,
                limit=words.limit(result["verdict"].get("margin"), metric),
            )
            shown.append({"column": words.text(column), "rows": rows, "svg": svg})
    return shown


def _metrics_of(side: Any) -> Mapping[str, Any]:
    """The metrics of a subgroup's side, which may be given bare or under `metrics`."""
    values = words.mapping(side)
    return words.mapping(values["metrics"]) if "metrics" in values else values
