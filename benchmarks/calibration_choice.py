"""What the choice of calibration cases changes: strategy × number of cases × seed, on the reference networks.

    python benchmarks/calibration_choice.py [hippocampus skin chest retina] [--strategies first random …]
        [--counts 4 32] [--seeds 3] [--bits 8,8 4,8] [--cases 24] [--observer mse] [--network-features] [--json FILE]

Each choice quantizes the network by ranges alone (fold batch norms, Quantize for OpenVINO), once per pair of widths
(weights, activations). The quantized graph is simulated in PyTorch on tuning cases, where they are the same for all
choices: the mean SQNR of the network's output over them, the difference of the metric (Dice, AUROC) from the float
network, and the share of labels kept. Retina has no tuning patients: there, evaluation cases stand in, and nothing is
chosen by what is found. Nothing here replaces the evaluation of the exported file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from microtome.batches.calibration import CalibrationBatches, inputs
from microtome.batches.selection import STRATEGIES, balanced, select
from microtome.deployment.deploy import sqnr
from microtome.deployment.timing import eager
from microtome.evidence.candidates import Judge, Judged
from microtome.evidence.comparison import streamed
from microtome.graph import pt2
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.progress import Silent
from microtome.runtimes import openvino as target
from microtome.types import Array, Bits, Case
from references import REFERENCES, build

NAMES = ("hippocampus", "skin", "chest", "retina")


@dataclass(frozen=True)
class Row:
    """What one choice gave."""

    network: str
    bits: str
    strategy: str
    count: int
    seed: int
    sqnr_db: float
    metric: str
    difference: float | None
    agreement: float
    seconds: float  # of choosing


@dataclass(frozen=True)
class Settings:
    """What is tried, on how much."""

    strategies: tuple[str, ...]
    counts: tuple[int, ...]
    seeds: int
    widths: tuple[Bits, ...]
    cases: int
    observer: str
    network_features: bool
    threads: int


class Subject:
    """A reference network, folded, and the cases that all choices are judged on."""

    def __init__(self, path: Path, cases: int, threads: int) -> None:
        self.pipeline = Pipeline.from_json(path.with_name("pipeline.json").read_text())
        shares = {} if _has_tuning(path) else {"tuning": 0.0}
        self.cohort: Cohort = load_cohort(path.with_name("manifest.csv"), seed=0, **shares)
        self.network = FoldBatchNorm().run(pt2.load(path))
        held_out = self.cohort.tuning or self.cohort.evaluation
        self.cases: tuple[Case, ...] = tuple(balanced(held_out, cases, np.random.default_rng(0)))
        parent = eager(self.network, threads)
        rng = np.random.default_rng(0)
        self.inputs = [x for case in self.cases for x in inputs(self.cohort, case, self.pipeline, rng)]
        self.outputs: list[Array] = [parent(x) for x in self.inputs]
        self.judge = Judge(streamed(parent), self.cohort, self.cases, self.pipeline)

    def rows(self, name: str, settings: Settings) -> Iterator[Row]:
        """Yield the result of each choice."""
        for strategy in settings.strategies:
            for count in settings.counts:
                if count > len(self.cohort.train):
                    continue
                for seed in range(1 if strategy == "first" else settings.seeds):
                    yield from self.choice(name, strategy, count, seed, settings)

    def choice(self, name: str, strategy: str, count: int, seed: int, settings: Settings) -> Iterator[Row]:
        """Choose cases, quantize on them, and look at what comes out."""
        start = time.perf_counter()
        chosen = select(
            self.cohort,
            self.cohort.train,
            pipeline=self.pipeline,
            count=count,
            strategy=strategy,
            seed=seed,
            network=self.network if settings.network_features else None,
        )
        seconds = round(time.perf_counter() - start, 2)
        on_foreground = strategy == "foreground"
        batches = CalibrationBatches(self.cohort, chosen, self.pipeline, Silent(), seed, foreground=on_foreground)
        for weight, activation in settings.widths:
            quantize = Quantize(settings.observer, weight_bits=weight, activation_bits=activation)
            network = quantize.run(self.network, Context(batches, capabilities=target.capabilities()))
            noise, judged = self.look(eager(network, settings.threads))
            yield Row(
                network=name,
                bits=f"W{weight or 'f'}A{activation or 'f'}",
                strategy=strategy,
                count=count,
                seed=seed,
                sqnr_db=noise,
                metric=self.judge.metric,
                difference=judged.difference.value,
                agreement=judged.agreement,
                seconds=seconds,
            )

    def look(self, run: Callable[[Array], Array]) -> tuple[float, Judged]:
        """Return the mean SQNR over the inputs, and what is lost."""
        noise = [sqnr(real, run(x)) for real, x in zip(self.outputs, self.inputs, strict=True)]
        return round(statistics.fmean(noise), 3), self.judge(streamed(run))


def _has_tuning(path: Path) -> bool:
    return ",val" in path.with_name("manifest.csv").read_text()


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table per network: mean over seeds, and from the smallest to the largest."""
    for name in dict.fromkeys(row.network for row in rows):
        mine = [row for row in rows if row.network == name]
        yield f"\n### {name}\n"
        metric = mine[0].metric
        yield f"| widths | cases | choice | seeds | SQNR in dB (range) | {metric}: difference (range) | labels kept |"
        yield "|---|---|---|---|---|---|---|"
        for key in dict.fromkeys((row.bits, row.count, row.strategy) for row in sorted(mine, key=_order)):
            group = [row for row in mine if (row.bits, row.count, row.strategy) == key]
            noise = [row.sqnr_db for row in group]
            changes = [row.difference for row in group if row.difference is not None]
            cells = [key[0], str(key[1]), key[2], str(len(group)), _spread(noise, ".2f")]
            cells += [_spread(changes, "+.4f"), f"{statistics.fmean(row.agreement for row in group):.3%}"]
            yield f"| {' | '.join(cells)} |"


def _order(row: Row) -> tuple[str, int]:
    return row.bits, row.count


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def _widths(text: str) -> Bits:
    sides = [None if side == "float" else int(side) for side in text.split(",")]
    return sides[0], sides[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=NAMES, help=", ".join(REFERENCES))
    parser.add_argument("--strategies", nargs="*", default=tuple(STRATEGIES), choices=tuple(STRATEGIES))
    parser.add_argument("--counts", nargs="*", type=int, default=(1, 4, 16, 64))
    parser.add_argument("--seeds", type=int, default=3, help="of each choice but `first`, which has none")
    parser.add_argument("--bits", nargs="*", type=_widths, default=((8, 8), (4, 8)), help="weights,activations")
    parser.add_argument("--cases", type=int, default=24, help="cases to judge on")
    parser.add_argument("--observer", default="mse")
    parser.add_argument("--network-features", action="store_true", help="for `diverse`: activations count as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(
        tuple(options.strategies),
        tuple(options.counts),
        options.seeds,
        tuple(options.bits),
        options.cases,
        options.observer,
        options.network_features,
        options.threads,
    )
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("MICROTOME_DATA") or default)
    rows: list[Row] = []
    for name in options.names:
        subject = Subject(build(name, data, threads=options.threads), options.cases, options.threads)
        for row in subject.rows(name, settings):
            rows.append(row)
            said = f"{name} {row.bits} {row.strategy} {row.count} #{row.seed}: {row.sqnr_db} dB"
            print(said, file=sys.stderr, flush=True)
            if options.json is not None:  # after each row: a long run that is stopped has not been for nothing
                record = {"settings": asdict(settings), "rows": [asdict(row) for row in rows]}
                options.json.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
