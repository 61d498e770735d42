"""From a compressed graph to an opened session: export, check against the simulation, time beside the parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


def deploy(task: Task, network: Network, staging: Staging, progress: Progress) -> Deployed:
    """Export parent and compressed network, open them, and look at how they run."""
    options, target = task.options, task.runtime
    progress.say(f"export to {options.target}")
    baseline = staging.work / "parent"
    baseline.mkdir(exist_ok=True)
    parent_path = target.export(task.loaded.network.to("cpu"), baseline)
    path = target.export(network.to("cpu"), staging.package)
    cohort, cases = task.calibration
    x = inputs(cohort, cases[0], task.pipeline, np.random.default_rng(options.seed))[0][None]

    progress.say("time parent and compressed network, interleaved")
    parent = task.loaded.network.to("cpu")
    candidates = [Candidate("eager f32", "pytorch", "f32", eager(parent, options.threads))]
    for precision in target.PRECISIONS:
        session = _try(partial(target.open_session, parent_path, threads=options.threads, precision=precision), x)
        if session is not None and options.target != "reference":
            size = file_bytes(target, parent_path)
            candidates.append(Candidate(f"{options.target} {precision}", options.target, precision, session.run, size))
    wanted = target.PRECISIONS if options.precision == "auto" else (options.precision,)
    sessions: dict[str, Session] = {}
    for precision in wanted:
        session = _try(partial(target.open_session, path, threads=options.threads, precision=precision), x)
        if session is not None:
            sessions[precision] = session
            name = f"{options.target} {options.recipe}" + (f", rest {precision}" if len(wanted) > 1 else "")
            size = file_bytes(target, path)
            candidates.append(Candidate(name, options.target, options.recipe, session.run, size, compressed=True))
    if not sessions:
        target.open_session(path, threads=options.threads, precision=wanted[0]).run(x)  # raises what is wrong
    runs = interleaved(candidates, x)
    ours = [run for run in runs if run.get("compressed")]
    times = dict(zip(sessions, (run["latency_ms"] for run in ours), strict=True))
    precision = next(iter(sessions))
    for other, milliseconds in times.items():
        if milliseconds < WORTHWHILE * times[precision]:
            precision = other
    chosen = sessions[precision]
    kept = list(sessions).index(precision)
    runs = [run for run in runs if not run.get("compressed") or run is ours[kept]]
    simulated, real = eager(network.to("cpu"), options.threads)(x), eager(parent, options.threads)(x)
    layers = layer_table(network, chosen.layer_runs(x))
    return Deployed(path, chosen, precision, runs, layers, sqnr(simulated, chosen.run(x)), sqnr(real, simulated))


def _try(open_it: Callable[[], Session], x: Array) -> Session | None:
    """Open a session and run it once; None if this precision does not run on this machine."""
    try:
        session = open_it()
        session.run(x)
    except MicrotomeError:
        return None
    return session


def sqnr(signal: Array, other: Array) -> float:
    """Signal-to-quantization-noise ratio in decibels; 200 if both are equal."""
    noise = float(np.square(signal - other, dtype=np.float64).mean())
    power = float(np.square(signal, dtype=np.float64).mean())
    return 200.0 if noise == 0 else round(min(200.0, 10 * float(np.log10(max(power, 1e-30) / noise))), 2)
