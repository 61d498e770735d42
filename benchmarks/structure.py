"""Structure first, then numbers: what pruning, factorization, distillation, search and chains lose and gain.

    python benchmarks/structure.py [PART …] [--networks hippocampus skin chest nnunet] [--seeds 0 1 2] [--minutes 25]
                                   [--out structure] [--json FILE] [--print] [--times]

Parts: prune, tucker, distill, deep, search, chain, norms. Every figure comes from `compress`: the metric of the
runtime's own output on the exported file, minus the float parent's, on patients that nothing was trained, tuned or
chosen on, with a 95 % interval by patient and the verdict at a margin of 0.01. Beside what was pruned stands the
natively small network: as wide as what was left, with fresh weights, trained as long on the references.

A cell that is in the output folder is not computed again, and one that was interrupted goes on. Accuracy does not
depend on how busy the machine is, but for trainings that a limit of minutes cuts short. Times do: with `--times`, on a
quiet machine, the packages that are there are run in turn with eager PyTorch and NNCF's int8 of the parent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from microtome.errors import MicrotomeError
from microtome.terminal import RichProgress
from microtome.verbs.compress import compress
from microtome.verbs.options import CompressOptions
from structure_pairs import teacher_table
from structure_peers import contest
from structure_plans import PARTS, Plan, plans
from structure_subjects import subject

MARGIN = 0.01


def measured(plan: Plan, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Compress a network as a plan says, unless its package is there; return its row."""
    parent = subject(plan.network, options.data, options.out)
    package = options.out / f"{plan.title}-{seed}"
    start = time.monotonic()
    if not (package / "result.json").exists():
        said = CompressOptions(
            recipe=plan.recipe(options.out / "recipes", options.minutes),
            set=plan.settings,
            margin=MARGIN,
            seed=seed,
            threads=options.threads,
            **parent.options,
        )
        compress(parent.model, parent.cohort, package, options=said, progress=options.progress)
    result = json.loads((package / "result.json").read_text())
    row = {"part": plan.part, "network": plan.network, "what": plan.what, "seed": seed, **_figures(result)}
    row["minutes"] = round((time.monotonic() - start) / 60, 1)
    return row


def times(options: argparse.Namespace) -> None:
    """Time the packages that are in the output folder, network by network, and write it beside them."""
    found: dict[str, dict[str, Path]] = {}
    for plan in plans(options.parts or PARTS):
        package = options.out / f"{plan.title}-{options.seeds[0]}"
        if (package / "result.json").exists() and (not options.networks or plan.network in options.networks):
            found.setdefault(plan.network, {})[f"{plan.part}: {plan.what}"] = package
    for network, packages in found.items():
        row = contest(packages, subject(network, options.data, options.out), threads=options.threads)
        (options.out / f"{network}.times.json").write_text(json.dumps(row, indent=1))
        print(network, json.dumps(row), flush=True)


def times_table(folder: Path) -> Iterator[str]:
    """Yield a Markdown table of what was timed."""
    yield "\n### times\n"
    yield "| network | what | ms | faster than eager f32 | than NNCF int8 |"
    yield "|---|---|---|---|---|"
    for file in sorted(folder.glob("*.times.json")):
        row, network = json.loads(file.read_text()), file.name.split(".")[0]
        for name, value in row["medians_ms"].items():
            ratios = [row[key].get(name) for key in ("than_eager", "than_nncf")]
            yield f"| {network} | {name} | {value:.2f} | " + " | ".join(f"{r:.1f}×" if r else "" for r in ratios) + " |"


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    metric = result["verdict"]["metric"]
    parent, ours = result["parent"], result["compressed"]
    change = result["difference"][metric]
    structure = result.get("structure") or {}
    macs = structure.get("macs") or [1, 1]
    nonzero = structure.get("nonzero") or [1, 1]
    coded = result.get("packed", {}).get("coded_bytes")
    return {
        "metric": metric,
        "parent": parent["metrics"][metric]["value"],
        "value": ours["metrics"][metric]["value"],
        "difference": change["value"],
        "low": change["low"],
        "high": change["high"],
        "verdict": result["verdict"]["non_inferior"],
        "parameters": [parent["parameters"], ours["parameters"]],
        "fewer": round(1 - ours["parameters"] / parent["parameters"], 4),
        "fewer_nonzero": round(1 - nonzero[1] / nonzero[0], 4),
        "fewer_macs": round(1 - macs[1] / macs[0], 4),
        "smaller": round(4 * parent["parameters"] / ours["bytes"], 2),
        "smaller_coded": None if coded is None else round(4 * parent["parameters"] / coded, 2),
        "faster": round(parent["latency_ms"] / ours["latency_ms"], 2),
        "latency_ms": ours["latency_ms"],
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table per part."""
    for part in dict.fromkeys(row["part"] for row in rows):
        yield f"\n### {part}\n"
        yield "| network | what | seed | fewer weights | fewer MACs | smaller (coded) | faster | loss | verdict |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for row in (row for row in rows if row["part"] == part):
            verdict = {True: "non-inferior", False: "inferior", None: "undecided"}[row["verdict"]]
            coded = "" if row["smaller_coded"] is None else f" ({row['smaller_coded']:.1f}×)"
            yield (
                f"| {row['network']} | {row['what']} | {row['seed']} | {row['fewer_nonzero']:.1%} | "
                f"{row['fewer_macs']:.1%} | {row['smaller']:.1f}×{coded} | {row['faster']:.1f}× | "
                f"{row['metric']} {row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}) | {verdict} |"
            )
        yield from _over_seeds([row for row in rows if row["part"] == part])


def _over_seeds(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the mean value of what was run with several seeds."""
    yield ""
    for network, what in dict.fromkeys((row["network"], row["what"]) for row in rows):
        values = [row["value"] for row in rows if (row["network"], row["what"]) == (network, what)]
        if len(values) > 1:
            spread = statistics.stdev(values)
            yield f"{network}, {what}: {statistics.mean(values):.4f} ± {spread:.4f} over {len(values)} seeds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--networks", nargs="*", help="only these")
    parser.add_argument("--only", nargs="*", help="only plans that are called so")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    default = os.environ.get("MICROTOME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the data sets")
    parser.add_argument("--minutes", type=float, default=25.0, help="of each single training, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("structure"))
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    parser.add_argument("--print", action="store_true", dest="only_print", help="compute nothing, print what is there")
    parser.add_argument("--times", action="store_true", help="train nothing, time the packages that are there")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {unknown.pop()}")
    if options.times and not find_spec("nncf"):
        parser.error("packages are timed beside NNCF: pip install -c constraints.txt -e '.[peers]'")
    options.out.mkdir(exist_ok=True, parents=True)
    torch.set_num_threads(options.threads)
    options.progress = RichProgress()
    if options.times:
        times(options)
    for plan in plans(options.parts or PARTS):
        if (options.networks and plan.network not in options.networks) or (
            options.only and plan.what not in options.only
        ):
            continue
        for seed in options.seeds:
            file = options.out / f"{plan.title}-{seed}.json"
            if file.exists() or options.only_print or options.times:
                continue
            try:
                row = measured(plan, seed, options)
            except MicrotomeError as error:
                print(plan.title, seed, f"failed: {error}", flush=True)
                continue
            file.write_text(json.dumps(row, indent=1))
            print(json.dumps(row), flush=True)
    rows = [json.loads(file.read_text()) for file in sorted(options.out.glob("*-*.json"))]
    pairs = teacher_table(options.out, list(plans(["student"])))
    print("\n".join([*table(rows), *pairs, *times_table(options.out)]))
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
