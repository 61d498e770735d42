"""From a compressed graph to an opened session: export, check against the simulation, time beside the parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import MicrotomeError
from microtome.graph.network import Network
from microtome.package import Staging
from microtome.progress import Progress
from microtome.runtimes.base import Session
from microtome.types import Array
from microtome.verbs.calibration import inputs
from microtome.verbs.layers import layer_table
from microtome.verbs.task import Task
from microtome.verbs.timing import Candidate, eager, file_bytes, interleaved

# How much faster the network must be with its float part in bf16 before that is chosen.
WORTHWHILE = 0.95


@dataclass(frozen=True)
class Deployed:
    """The exported networks, opened."""

    path: Path
    session: Session
    precision: str
    runs: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    parity_db: float
    quantization_db: float


def deploy(
    task: Task, network: Network, staging: Staging, progress: Progress, precision: str | None = None
) -> Deployed:
    """Export parent and compressed network, open them, and look at how they run.

    Args:
        task: what was asked.
        network: compressed.
        staging: takes the files.
        progress: told what is done.
        precision: of what the compressed network leaves in float; None takes the first that the target offers, unless
            another is clearly faster.

    Raises:
        TargetError: an operator cannot be exported, or the compressed network does not run.
    """
    options, target = task.options, task.runtime
    parent, network = task.loaded.network.to("cpu"), network.to("cpu")
    progress.say(f"export to {options.target}")
    baseline = staging.work / "parent"
    baseline.mkdir(exist_ok=True)
    parent_path, path = target.export(parent, baseline), target.export(network, staging.package)
    cohort, cases = task.calibration
    x = inputs(cohort, cases[0], task.pipeline, np.random.default_rng(options.seed))[0][None]

    progress.say("time parent and compressed network, interleaved")
    run_parent = eager(parent, options.threads)
    real, simulated = run_parent(x), eager(network, options.threads)(x)
    floats = {} if options.target == "reference" else _open(task, parent_path, target.PRECISIONS, x)
    ours = _open(task, path, target.PRECISIONS if precision is None else (precision,), x)
    sizes = file_bytes(target, parent_path), file_bytes(target, path)
    names = {p: f"{options.target} {options.recipe}" + (f", rest {p}" if len(ours) > 1 else "") for p in ours}
    runs = interleaved(
        [
            Candidate("eager f32", "pytorch", "f32", run_parent),
            *(Candidate(f"{options.target} {p}", options.target, p, s.run, sizes[0]) for p, s in floats.items()),
            *(Candidate(names[p], options.target, options.recipe, s.run, sizes[1], True) for p, s in ours.items()),
        ],
        x,
    )
    latency = {run["name"]: run["latency_ms"] for run in runs}
    best = next(iter(ours))
    for other in ours:
        if latency[names[other]] < WORTHWHILE * latency[names[best]]:
            best = other
    runs = [run for run in runs if not run.get("compressed") or run["name"] == names[best]]
    chosen = ours[best]
    layers = layer_table(network, chosen.layer_runs(x))
    return Deployed(path, chosen, best, runs, layers, sqnr(simulated, chosen.run(x)), sqnr(real, simulated))


def _open(task: Task, path: Path, precisions: Sequence[str], x: Array) -> dict[str, Session]:
    """Open a model file once for each float precision in which it runs on this machine, and run it once.

    Raises:
        MicrotomeError: it runs in none; what the last one said.
    """
    sessions: dict[str, Session] = {}
    for precision in precisions:
        try:
            session = task.runtime.open_session(path, threads=task.options.threads, precision=precision)
            session.run(x)
        except MicrotomeError:
            if precision == precisions[-1] and not sessions:
                raise
            continue
        sessions[precision] = session
    return sessions


def sqnr(signal: Array, other: Array) -> float:
    """Signal-to-quantization-noise ratio in decibels; 200 if both are equal."""
    noise = float(np.square(signal - other, dtype=np.float64).mean())
    power = float(np.square(signal, dtype=np.float64).mean())
    return 200.0 if noise == 0 else round(min(200.0, 10 * float(np.log10(max(power, 1e-30) / noise))), 2)
