"""One network on every target: does each compute the same, in integers, how fast, how large.

    python benchmarks/reach.py [skin chest efficientnet_b0 hippocampus] [--targets openvino onnxruntime litert …]
                               [--cases 100] [--threads 1] [--json FILE]

The recipe `int8` with each target's own placement. Labels are those of the exported file beside those of its network,
simulated, on held-out cases (`efficientnet_b0` has random weights and phantoms). Of multiplications in integers the
file itself tells. Times are medians of all targets in turn, one thread; memory is what a process takes, at
most, that opens the file and runs it once, beside the runtime itself. What a target refuses is
shown with its reason.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accuracy import CALIBRATION_CASES, reference
from microtome.batches.calibration import CalibrationBatches
from microtome.deployment.deploy import sqnr
from microtome.deployment.parity import Ladder
from microtome.deployment.timing import Candidate, eager, file_bytes, interleaved
from microtome.errors import MicrotomeError
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.graph.watching.macs import layer_sizes
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.methods.base import Context
from microtome.progress import Silent
from microtome.recipes import read, run
from microtome.runtimes import TARGETS, runtime
from microtome.types import Array
from suite import SUITE, prepare

NAMES = ("skin", "chest", "efficientnet_b0", "hippocampus")
LADDER = 3  # inputs that are compared layer by layer
ONCE = """
import sys, time
from pathlib import Path
import numpy as np
from microtome.runtimes import runtime
target = runtime(sys.argv[1]); target.capabilities()
def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
begin = time.perf_counter()
session = target.open_session(Path(sys.argv[2]), threads=1)
session.run(np.load(sys.argv[3]))
print((kib("VmHWM") - before) / 1024, 1e3 * (time.perf_counter() - begin))
"""


def subject(name: str, count: int) -> tuple[Network, list[torch.Tensor], Iterator[Array]]:
    """Return a network, images to calibrate on, and held-out ones."""
    if name in SUITE:
        prepared = prepare(name, calibration=CALIBRATION_CASES, held_out=count)
        return prepared.network, [torch.from_numpy(x) for x in prepared.calibration], iter(prepared.held_out)
    path = reference(name)
    cohort = load_cohort(path.with_name("manifest.csv"), seed=0)
    pipeline = Pipeline.from_json(path.with_name("pipeline.json").read_text())
    given = CalibrationBatches(cohort, cohort.calibration(CALIBRATION_CASES), pipeline, Silent())
    held_out = CalibrationBatches(cohort, cohort.evaluation[:count], pipeline, Silent())
    return pt2.load(path), list(given), (x.numpy() for x in held_out)


def labels(scores: Array) -> Array:
    """Return the class of each place, or of the image."""
    return np.asarray(scores.argmax(1))


def measure(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each target."""
    network, calibration, stream = subject(name, options.cases)
    images = list(stream)
    rows, timed = [], [Candidate("eager", "pytorch", "f32", eager(network, options.threads))]
    macs = {layer.name: size.macs for layer, size in zip(network.layers, layer_sizes(network), strict=True)}
    for target in options.targets:
        row: dict[str, Any] = {"network": name, "target": target}
        rows.append(row)
        try:
            module = runtime(target)
            compressed = run(read("int8"), network, Context(calibration, capabilities=module.capabilities()))
            (folder / target).mkdir(parents=True)
            path = module.export(compressed, folder / target)
            session = module.open_session(path, threads=options.threads, precision=module.PRECISIONS[0])
            alike = []
            for x in images:
                with torch.inference_mode():
                    simulated = compressed(torch.from_numpy(x)).numpy()
                alike.append(float(np.mean(labels(simulated) == labels(session.run(x)))))
            ladder = Ladder(compressed, module, threads=options.threads)
            for x in images[:LADDER]:
                ladder.climb(x)
        except MicrotomeError as error:
            row["refused"] = str(error)
            continue
        runs = session.layer_runs(images[0])
        integer = {layer for layer in macs if any(one.runs(layer) and one.executed == "int8" for one in runs)}
        rungs = ladder.rungs()
        np.save(folder / "x.npy", images[0])
        call = [sys.executable, "-c", ONCE, target, str(path), str(folder / "x.npy")]
        memory, cold = map(float, subprocess.run(call, check=True, capture_output=True, text=True).stdout.split())
        with torch.inference_mode():
            real = network(torch.from_numpy(images[0])).numpy()
        row |= {
            "cases": len(images),
            "same_labels": float(np.mean(alike)),
            "least": min(alike),
            "integer_macs": sum(macs[layer] for layer in integer) / sum(macs.values()),
            "bytes": file_bytes(module, path),
            "db": sqnr(real, session.run(images[0])),
            "ladder_largest": max(rung["own_largest"] for rung in rungs),
            "ladder_mean": max(rung["own_mean"] for rung in rungs),
            "departs": next((rung["layer"] for rung in rungs if rung["departs"]), None),
            "memory_mib": memory,
            "cold_ms": cold,
        }
        timed.append(Candidate(target, target, "int8", session.run))
    for found in interleaved(timed, images[0]):
        next((row for row in rows if row["target"] == found["name"]), {})["ms"] = found["latency_ms"]
        if found["name"] == "eager":
            rows.append({"network": name, "target": "eager", "ms": found["latency_ms"]})
    return rows


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    name = f"| {row['network']} | {row['target']} "
    if "refused" in row:
        return f"{name}| refused: {row['refused']} | | | | | | |"
    if "bytes" not in row:
        return f"{name}| | | | | {row['ms']:.2f} | | |"
    departs = f", departs before {row['departs']}" if row["departs"] else ""
    return (
        f"{name}| {row['same_labels']:.3%} (≥ {row['least']:.2%}) | {row['integer_macs']:.1%} "
        f"| {row['ladder_largest']:.2f} / {row['ladder_mean']:.4f}{departs} | {row['bytes']:,} | {row['ms']:.2f} "
        f"| {row['cold_ms']:.0f} | {row['memory_mib']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*NAMES])
    parser.add_argument("--targets", nargs="*", default=[name for name in TARGETS if name != "reference"])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin, rows = time.perf_counter(), []
    print("| network | target | labels as simulated | MACs in integers | ladder, alone: largest / mean steps ", end="")
    print("| bytes | ms | cold start, ms | memory, MiB |\n|---|---|---|---|---|---|---|---|---|")
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, options, Path(folder))
        print("\n".join(map(line, found)), flush=True)
        rows += found
        if options.json is not None:
            options.json.write_text(json.dumps({"rows": rows}, indent=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"\n{time.perf_counter() - begin:.0f} s, {peak} MiB")


if __name__ == "__main__":
    main()
