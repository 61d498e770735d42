"""How fast each network of the suite runs: ours beside every peer, interleaved, with the error of each output.

    python benchmarks/versus.py [NAME …] [--threads 2] [--runs 3] [--budget 30] [--only eager nncf ours …]
                                [--throughput] [--json FILE] [--plot FILE]

Contenders: eager PyTorch in float32 and bfloat16, torch.compile, OpenVINO in float32 and bfloat16, NNCF's int8 on
OpenVINO (with either float precision beside its integers), ONNX Runtime and its own static int8, torchao's PT2E for
x86, and ours: the recipe `int8` on OpenVINO, with the faster of both float precisions. Times are medians in
milliseconds, batch 1.

Each network runs in a process of its own. Each row also has the fraction of the measured ceiling: the rate of a chain
of dense int8 convolutions, timed in the same process. SQNR is that of the output against eager float32, over held-out
images. A contender that fails is shown with its message. Measure on a quiet machine: timings lie while others work.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ceiling import ceiling
from microtome.deployment.deploy import sqnr
from microtome.deployment.timing import Candidate, interleaved
from microtome.environment import describe
from microtome.types import Array
from suite import SUITE, Prepared
from versus_contenders import CONTENDERS, Contest, Run
from versus_table import merged, plot, table

BATCHES, LEAST_CALLS, THROUGHPUT_SECONDS = (1, 2, 4), 4, 3.0
SHORT_BUDGET = 15.0  # seconds for one interleaved run of all: slow ones take most of it


def contest(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one network, several times over."""
    threads, only = options.threads[0], options.only
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        this = Contest(name, threads, Path(folder), options.placement_minutes)
        with torch.inference_mode():
            real = [this.subject.network(torch.from_numpy(x)).numpy() for x in this.subject.held_out]
        x = this.subject.held_out[0]
        ready, errors, decibels = {}, {}, {}
        for contender in only:
            try:
                with _silence():
                    run = this.run(contender)
                    outputs = [run(image) for image in this.subject.held_out]
            except Exception as error:  # a peer that fails is a row of the table
                errors[contender] = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]
                )
                continue
            ready[contender] = run
            decibels[contender] = round(float(sqnr(np.concatenate(real), np.concatenate(outputs))), 2)
        everybody = [Candidate(n, "", "", run) for n, run in ready.items()]
        quick = [c for c in everybody if c.name.startswith(("ov", "nncf", "ours"))]
        timed = []
        for _ in range(options.runs):
            slow = interleaved(everybody, x, budget=min(SHORT_BUDGET, options.budget))
            fast = interleaved(quick, x, budget=options.budget) if quick else []
            timed.append([{row["name"]: row["latency_ms"] for row in rows} for rows in (slow, fast)])
        rates = {c.name: throughput(c.run, x) for c in quick} if options.throughput else {}
        flop, peak = operations(this.subject), ceiling(len(this.subject.subject.shape) - 1, threads)
    about = {
        "network": name,
        "input": [1, *this.subject.subject.shape],
        "threads": threads,
        "gflop": round(flop / 1e9, 2),
        "sqnr_db": decibels,
        "errors": errors,
        "preparation_s": this.seconds,
        "precision": getattr(this, "precision", None),
        "ceiling_gops": round(peak, 1),
        "throughput": rates,
        "environment": describe(threads),
    }
    return [{**about, "ms": slow | fast, "beside_eager_ms": slow} for slow, fast in timed]


def throughput(run: Run, x: Array) -> dict[str, float]:
    """Images per second at the best batch, one stream per thread."""
    session: Any = run.__self__  # type: ignore[attr-defined]
    rates = {}
    for batch in BATCHES:
        images = np.repeat(x, batch, axis=0)
        begin = time.perf_counter()
        collections.deque(session.stream([images] * LEAST_CALLS), maxlen=0)  # compiles, and says how long one takes
        calls = max(LEAST_CALLS, int(THROUGHPUT_SECONDS * LEAST_CALLS / (time.perf_counter() - begin)))
        begin = time.perf_counter()
        collections.deque(session.stream([images] * calls), maxlen=0)
        rates[batch] = calls * batch / (time.perf_counter() - begin)
    best = max(rates, key=lambda batch: rates[batch])
    return {"batch": best, "per_second": round(rates[best], 2)}


def operations(subject: Prepared) -> float:
    """Multiplications and additions of one inference."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.network(torch.from_numpy(subject.held_out[0]))
    return float(counter.get_total_flops())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SUITE))
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per run for the fast contenders")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--placement-minutes", type=float, default=0.0, help="measure where integers pay; 0 is by rules"
    )
    parser.add_argument("--throughput", action="store_true", help="images per second at the best batch, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(contest(options.names[0], options)))
        return
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        for name in options.names:
            call = [sys.executable, __file__, name, "--one", "--threads", str(threads), "--only", *options.only]
            for option in ("runs", "budget", "placement_minutes"):
                call += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
            call += ["--throughput"] if options.throughput else []
            said = subprocess.run(call, check=False, stdout=subprocess.PIPE, text=True)
            if said.returncode:
                print(f"{name}: failed with exit status {said.returncode}", flush=True)
                continue
            runs = json.loads(said.stdout.strip().splitlines()[-1])
            if runs:
                rows.append(merged(runs))
                print(
                    f"{name}, {threads} threads: {rows[-1]['ms']} {rows[-1]['ratios']} {rows[-1]['throughput']}",
                    flush=True,
                )
                if options.json is not None:
                    options.json.write_text(json.dumps({"networks": rows}, indent=1))
    print("\n".join(table(rows)))
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
