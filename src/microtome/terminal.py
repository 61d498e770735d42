"""How things look in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from microtome.errors import MicrotomeError

T = TypeVar("T")
MARKS = {True: "[green]✔ non-inferior[/]", False: "[red]✘ inferior[/]", None: "[yellow]? undecided[/]"}
NO_VERDICT = "[yellow]? no verdict[/]"
MOST_LAYERS = 40
TABLE_WIDTH = 140  # of tables that are not read in a terminal


class RichProgress:
    """Bars with remaining time, on standard error."""

    def __init__(self) -> None:
        """Make the display; it starts with the `with` block."""
        self._console = Console(stderr=True)
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
        """Start the display."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display."""
        self._bars.stop()

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass the items on and move a bar; where nobody sees bars, such as in a log, say what begins."""
        if not self._console.is_terminal:
            self.say(title if total is None else f"{title}: {total} steps")
        yield from self._bars.track(items, total=total, description=title)

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self._console.print(f"[dim]{text}[/]", highlight=False)


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
    console.print(f"\n[bold]{result['title']}[/]  ({result['target']}, {result['recipe']})")
    mark = MARKS[verdict.get("non_inferior")]
    if verdict.get("non_inferior") is None and verdict.get("cause", "cases") != "cases":
        mark = NO_VERDICT
    console.print(f"{mark}  {escape(verdict.get('reason', ''))}", highlight=False)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("", "parent", "compressed", "difference (95 % interval)"):
        table.add_column(name, justify="right" if name else "left")
    for metric, interval in result["compressed"]["metrics"].items():
        parent, change = result["parent"].get("metrics", {}).get(metric), result.get("difference", {}).get(metric)
        table.add_row(metric, _number(parent), _number(interval), _interval(change))
    parent, ours = result["parent"], result["compressed"]
    if parent.get("latency_ms") and ours.get("latency_ms"):
        ratio = parent["latency_ms"] / ours["latency_ms"]
        table.add_row("latency, ms", f"{parent['latency_ms']:.2f}", f"{ours['latency_ms']:.2f}", f"{ratio:.2f}× faster")
    if parent.get("bytes") and ours.get("bytes"):
        ratio = parent["bytes"] / ours["bytes"]
        table.add_row("bytes", f"{parent['bytes']:,}", f"{ours['bytes']:,}", f"{ratio:.2f}× smaller")
    console.print(table)
    for run in result.get("runs", ()):
        console.print(f"  {run['name']:32} {run['latency_ms']:10.2f} ms", highlight=False)
    integer = result.get("integer")
    if integer:
        console.print(f"Layers in integers: {integer['executed']} of {integer['requested']} asked for", highlight=False)
    for warning in result.get("warnings", ()):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
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
        f"{result['title']}: {result['parameters']:,} parameters, {result['macs'] / 1e9:.2f} GMAC for an input of "
        f"{'×'.join(map(str, result['input']))}",
        highlight=False,
    )
    for side in ("inputs", "outputs"):
        for port in result[side]:
            sizes = "other sizes too" if any(port["dynamic"][1:]) else "no other size"
            shape = "×".join(map(str, port["shape"]))
            console.print(f"{side.removesuffix('s')} {port['name']}: {shape}, {sizes}", highlight=False)
    for note in result["notes"]:
        console.print(f"[dim]{note}[/]", highlight=False)


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
