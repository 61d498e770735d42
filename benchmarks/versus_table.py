"""What versus.py shows: medians and ratios of several runs, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from versus_contenders import CONTENDERS


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of one network as one row: medians over the runs, and the ratio of each."""
    names = runs[0]["ms"]
    row = {
        **runs[0],
        "ms": {n: round(float(np.median([run["ms"][n] for run in runs if n in run["ms"]])), 3) for n in names},
    }
    rate = row["gflop"] * 1e3 / row["ceiling_gops"]
    row["fraction_of_ceiling"] = {n: round(rate / ms, 3) for n, ms in row["ms"].items()}
    row["runs"] = [{"ms": run["ms"], "beside_eager_ms": run["beside_eager_ms"]} for run in runs]
    row["ratios"] = ratios(runs)
    return row


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster ours is: medians over runs of the ratio within each run."""

    def ratio(of: Callable[[dict[str, float]], float | None], key: str) -> float | None:
        found = [of(run[key]) / run[key]["ours"] for run in runs if run[key].get("ours") and of(run[key])]
        return round(float(np.median(found)), 3) if found else None

    def best(*names: str) -> Callable[[dict[str, float]], float | None]:
        return lambda ms: min((ms[n] for n in names if n in ms), default=None)

    return {
        "nncf": ratio(best("nncf"), "ms"),
        "nncf_best": ratio(best("nncf", "nncf_bf16"), "ms"),
        "uniform": ratio(best("ov_f32", "ov_bf16"), "ms"),
        "eager": ratio(best("eager"), "beside_eager_ms"),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table as Markdown."""
    names = [n for n in CONTENDERS if any(n in row["ms"] or n in row["errors"] for row in rows)]
    yield (
        "| network | "
        + " | ".join(names)
        + " | ours / NNCF (best) | / uniform | / eager | SQNR ours, NNCF (dB) | of ceiling |"
    )
    yield "|---" * (len(names) + 6) + "|"
    for row in rows:
        cells = [f"{row['ms'][n]:.2f}" if n in row["ms"] else ("failed" if n in row["errors"] else "–") for n in names]
        times, decibels = row["ratios"], row["sqnr_db"]
        cells += [f"{times['nncf']}× ({times['nncf_best']}×)", f"{times['uniform']}×", f"{times['eager']}×"]
        peer = max((decibels[n] for n in ("nncf", "nncf_bf16") if n in decibels), default=float("nan"))
        cells += [
            f"{decibels.get('ours', float('nan')):.1f}, {peer:.1f}",
            f"{row['fraction_of_ceiling'].get('ours', 0):.0%}",
        ]
        yield f"| {row['network']} | " + " | ".join(cells) + " |"
    for key in ("nncf", "nncf_best", "uniform", "eager"):
        values = [row["ratios"][key] for row in rows if row["ratios"][key]]
        if values:
            yield f"\ngeometric mean against {key}: {np.exp(np.mean(np.log(values))):.3f}, least {min(values):.3f}"
    for row in rows:
        for name, message in row["errors"].items():
            yield f"\n{row['network']}, {name}: {message}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how many times faster than eager float32 each contender is."""
    import matplotlib.pyplot as plt

    names = [
        n
        for n in ("ov_f32", "ov_bf16", "nncf", "nncf_bf16", "ort_int8", "compiled", "ours")
        if any(n in r["ms"] for r in rows)
    ]
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        heights = [
            row["ms"]["eager"] / row["ms"][name] if name in row["ms"] and "eager" in row["ms"] else 0 for row in rows
        ]
        axes.bar(np.arange(len(rows)) + k * width, heights, width, label=name)
    axes.set_xticks(np.arange(len(rows)) + 0.4 - width / 2, [row["network"] for row in rows], rotation=20)
    axes.set_ylabel("times faster than eager float32")
    axes.legend(ncols=len(names), fontsize="small")
    figure.savefig(path, dpi=130)
