"""How things look in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from microtome.errors import MicrotomeError
from microtome.metrics import distinct

T = TypeVar("T")
MARKS = {True: "[green]✔ non-inferior[/]", False: "[red]✘ inferior[/]", None: "[yellow]? undecided[/]"}
NO_VERDICT = "[yellow]? no verdict[/]"
MOST_LAYERS = 40
TABLE_WIDTH = 140  # of tables that are not read in a terminal
# Of a stage, where no bar is seen: a line each tenth of it, but not sooner than after so many seconds; where a tenth
# takes long, a line now and then all the same.
TENTHS = 10
SHORT_SILENCE, LONG_SILENCE = 2.0, 30.0


class RichProgress:
    """Bars with remaining time, on standard error."""

    def __init__(self) -> None:
        """Make the display; it starts with the `with` block."""
        self._console = Console(stderr=True, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )

    def __enter__(self) -> Self:
        """Start the display, where there is a terminal."""
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display."""
        if self._console.is_terminal:
            self._bars.stop()

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass the items on and move a bar; where nobody sees bars, such as in a log, say how far it is."""
        if self._console.is_terminal:
            yield from self._bars.track(items, total=total, description=title)
        else:
            yield from self._lines(items, title, total)

    def _lines(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        """Pass the items on, and say a line when it begins, each tenth of the way but not too often, and at its end."""
        begin = last = time.perf_counter()
        self.say(title if total is None else f"{title}: 0 of {total}")
        done = 0
        for item in items:
            yield item
            done += 1
            now = time.perf_counter()
            tenth = total is None or done * TENTHS // total > (done - 1) * TENTHS // total
            if done != total and now - last >= (LONG_SILENCE if not tenth else SHORT_SILENCE):
                last = now
                left = "" if total is None else f" of {total}, {(now - begin) / done * (total - done):.0f} s left"
                self.say(f"{title}: {done}{left}")
        self.say(f"{title}: {done} done in {time.perf_counter() - begin:.1f} s")

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self._console.print(text, style="dim", highlight=False, markup=False)


def complain(error: MicrotomeError) -> None:
    """Print what was wrong, and what to do."""
    console = Console(stderr=True, soft_wrap=True)
    console.print("[red]error:[/] ", end="")
    console.print(error.problem, highlight=False, markup=False)
    if error.hint:
        console.print(error.hint, style="dim", highlight=False, markup=False)


def print_result(result: Mapping[str, Any], out: Path) -> None:
    """Print the verdict, the main numbers and where the report is."""
    console = Console(soft_wrap=True)
    verdict = result.get("verdict") or {}
    console.print(f"\n[bold]{escape(result['title'])}[/]  ({result['target']}, {result['recipe']})")
    mark = MARKS[verdict.get("non_inferior")]
    if verdict.get("non_inferior") is None and verdict.get("cause", "cases") != "cases":
        mark = NO_VERDICT
    console.print(f"{mark}  {escape(verdict.get('reason', ''))}", highlight=False)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("", "parent", "compressed", "difference (95 % interval)"):
        table.add_column(name, justify="right" if name else "left")
    values = result["compressed"]["metrics"]
    for metric in distinct(values, str(verdict.get("metric", ""))):
        interval = values[metric]
        parent, change = result["parent"].get("metrics", {}).get(metric), result.get("difference", {}).get(metric)
        table.add_row(metric, _number(parent), _number(interval), _interval(change))
    parent, ours = result["parent"], result["compressed"]
    if parent.get("latency_ms") and ours.get("latency_ms"):
        gain = _gain(parent["latency_ms"] / ours["latency_ms"], "faster", "slower")
        table.add_row("latency, ms", f"{parent['latency_ms']:.2f}", f"{ours['latency_ms']:.2f}", gain)
    if parent.get("bytes") and ours.get("bytes"):
        gain = _gain(parent["bytes"] / ours["bytes"], "smaller", "larger")
        table.add_row("bytes", f"{parent['bytes']:,}", f"{ours['bytes']:,}", gain)
    console.print(table)
    for run in result.get("runs", ()):
        console.print(f"  {run['name']:32} {run['latency_ms']:10.2f} ms", highlight=False)
    integer = result.get("integer")
    if integer:
        console.print(f"Layers in integers: {integer['executed']} of {integer['requested']} asked for", highlight=False)
    if result.get("input", {}).get("guessed"):
        console.print("[yellow]guessed:[/] the pre-processing; see the notes and --pipeline", highlight=False)
    for kind, style in (("warning", "yellow"), ("note", "cyan")):
        for line in result.get(f"{kind}s", ()):
            console.print(f"[{style}]{kind}:[/] {escape(line)}", highlight=False)
    console.print(f"Report: {out / 'report.html'}", highlight=False)
    console.print("[dim]This is evidence, not clearance.[/]")


def bench_table(result: dict[str, Any]) -> None:
    """Print `bench`'s result."""
    console = _wide()
    for run in result["runs"]:
        console.print(f"{run['name']:32} {run['latency_ms']:10.3f} ms", highlight=False)
    table = Table("operator", "kind", "executed", "kernel", "ms", show_edge=False, pad_edge=False)
    for row in result["layers"][:MOST_LAYERS]:
        milliseconds = "" if row["latency_ms"] is None else f"{row['latency_ms']:.3f}"
        table.add_row(row["name"], row["op"], row["executed"], row["kernel"], milliseconds)
    console.print(table)


def parity_table(result: dict[str, Any]) -> None:
    """Print `parity`'s result."""
    console = _wide()
    for name, found in result["targets"].items():
        if "skipped" in found:
            console.print(f"[bold]{escape(name)}[/]: not compared. {escape(found['skipped'])}", highlight=False)
            continue
        table = Table("value read by", "step", "alone: mean", "largest", "from the input on: mean", "largest", "")
        table.show_edge, table.pad_edge = False, False
        for rung in found["rungs"]:
            numbers = (f"{rung[key]:.4g}" for key in ("step", "own_mean", "own_largest", "mean", "largest"))
            table.add_row(escape(rung["layer"]), *numbers, "[red]departs[/]" if rung["departs"] else "")
        console.print(f"[bold]{escape(name)}[/], {found['precision']} beside integers; differences in steps")
        console.print(table)
        console.print(f"{_same(found)} as simulated", highlight=False)
        if found["departs"] is not None:
            console.print(f"[red]{escape(found['departs'])}[/] is the first that departs.", highlight=False)
    if "parent" in result:
        console.print(f"Simulated beside the parent: {_same(result['parent'])}", highlight=False)
    console.print(result["tolerance"], style="dim", highlight=False)


def targets_table(result: dict[str, Any]) -> None:
    """Print what `targets` found."""
    console = _wide()
    table = Table("target", "installed", "integers", "other operators on integers", "floats")
    table.show_edge, table.pad_edge = False, False
    for name, found in result["targets"].items():
        if not found["installed"]:
            missing = f"no: pip install 'microtome\\[{found['extra']}]'"
            table.add_row(escape(name), missing, "", "", "")
            continue
        layers = [_layer_formats(kind, row) for kind, row in found["layers"].items()]
        where = "runs here" if found["runs"] else "cannot run here"
        table.add_row(
            escape(name),
            f"{found['version'] or 'yes'}, {where}" + ("" if found["integers"] else "; integers are simulated"),
            "\n".join(layers),
            ", ".join(found["operators"]) + (" (all of a network)" if found["everywhere"] else ""),
            ", ".join(found["floats"]),
        )
    console.print(table)
    console.print(f"{result['processor']}: {', '.join(result['instructions'])}", style="dim", highlight=False)


def _layer_formats(kind: str, row: Mapping[str, Any]) -> str:
    axes = f" {', '.join(f'{n}-D' for n in row['axes'])}" if row["axes"] else ""
    return f"{kind}{axes}: {row['activation']} × {row['weight']}"


def _same(found: Mapping[str, Any]) -> str:
    """Say in words how alike predictions are."""
    count = len(found["cases"])
    images = f"{count} image{'s' * (count != 1)}"
    if found["agreement"] is None:
        gap = max((case["largest"] or 0.0 for case in found["cases"]), default=0.0)
        return f"{images}, predictions within {gap:.3g}"
    worst = min(case["agreement"] for case in found["cases"])
    return f"{images}, {found['agreement']:.3%} of the labels (at least {worst:.3%})"


def inspect_table(result: dict[str, Any]) -> None:
    """Print `inspect`'s result."""
    console = _wide()
    targets = result["targets"]
    table = Table("layer", "op", "weight", "output", "parameters", "MMAC", *targets, show_edge=False, pad_edge=False)
    for row in result["layers"]:
        table.add_row(
            row["name"],
            row["op"],
            "×".join(map(str, row["weight"])),
            "×".join(map(str, row["output"])),
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:,.1f}",
            *(row["executes"][target] for target in targets),
        )
    console.print(table)
    console.print(
        f"{escape(result['title'])}: {result['parameters']:,} parameters, {result['macs'] / 1e9:.2f} GMAC "
        f"for an input of {'×'.join(map(str, result['input']))}",
        highlight=False,
    )
    for side in ("inputs", "outputs"):
        for port in result[side]:
            sizes = "other sizes too" if any(port["dynamic"][1:]) else "no other size"
            shape = "×".join(map(str, port["shape"]))
            console.print(f"{side.removesuffix('s')} {port['name']}: {shape}, {sizes}", highlight=False)
    _steps(console, result.get("steps", ()))
    for note in result["notes"]:
        console.print(note, style="dim", markup=False, highlight=False)
    if "cohort" in result:
        _cohort(console, result["cohort"])
    _pipeline(console, result["pipeline"])
    for warning in result.get("warnings", ()):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def _cohort(console: Console, cohort: Mapping[str, Any]) -> None:
    """Print what a cohort is: split, classes, and one case."""
    console.print(f"\n[bold]Cohort[/]: {cohort['task']}, read as {escape(cohort['format'])}", highlight=False)
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(cohort["classes"]))
    console.print(f"classes: {classes or 'none'}", markup=False, highlight=False)
    table = Table("role", "cases", "patients", "labelled", show_edge=False, pad_edge=False)
    for role, counts in cohort["split"].items():
        table.add_row(role, *(str(counts[name]) for name in ("cases", "patients", "labelled")))
    console.print(table)
    patients = cohort["patients"]
    console.print(f"patients: {patients['rule'] or 'as the cohort names them'}", markup=False, highlight=False)
    for file, patient in patients.get("examples", ()):
        console.print(f"  {file} → {patient}", markup=False, highlight=False)
    case = cohort["case"]
    sizes = "×".join(map(str, case["size"]))
    spacing = f", {'×'.join(f'{n:g}' for n in case['spacing'])} mm, {case['orientation']}" if case["spacing"] else ""
    low, high = case["range"]
    labels = f"; labels {', '.join(map(str, case['labels']))}" if "labels" in case else ""
    console.print(f"one case: {sizes}{spacing}, {case['type']}, {low:g} to {high:g}{labels}", highlight=False)
    low, high = case["input_range"]
    console.print(f"becomes: {'×'.join(map(str, case['input']))}, {low:g} to {high:g}", highlight=False)
    for note in cohort["notes"]:
        console.print(note, style="dim", markup=False, highlight=False)


def _steps(console: Console, steps: Iterable[Mapping[str, Any]]) -> None:
    """Print what became of each step of processing that a model declares."""
    rows = list(steps)
    if not rows:
        return
    table = Table("declared", "step", "", "what", show_edge=False, pad_edge=False)
    for row in rows:
        verdict = "[yellow]noted[/]" if row["verdict"] == "noted" else row["verdict"]
        table.add_row(row["stage"], escape(row["name"]), verdict, escape(row["what"]))
    console.print(table)


def _pipeline(console: Console, fields: Iterable[Mapping[str, Any]]) -> None:
    """Print the fields of a pipeline that say something; what was guessed is marked."""
    rows = list(fields)
    if not rows:
        return
    table = Table("pipeline", "value", "", show_edge=False, pad_edge=False)
    for row in rows:
        value = row["value"]
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        table.add_row(row["name"], escape(shown), "[yellow]guessed[/]" if row["guessed"] else "")
    console.print(table)


def _gain(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.2f}× {better}" if ratio >= 1 else f"{1 / ratio:.2f}× {worse}"


def _wide() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


def _number(interval: dict[str, float | None] | None) -> str:
    return "–" if not interval or interval.get("value") is None else f"{interval['value']:.4f}"


def _interval(interval: dict[str, float | None] | None) -> str:
    if not interval or interval.get("value") is None:
        return "–"
    text = f"{interval['value']:+.4f}"
    return text if interval.get("low") is None else f"{text} ({interval['low']:+.4f} to {interval['high']:+.4f})"
