"""From a compressed graph to an opened session: export, check against the simulation, time beside the parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microtome.deployment.layers import layer_table
from microtome.deployment.timing import Candidate, eager, file_bytes, interleaved
from microtome.errors import MicrotomeError, TargetError
from microtome.graph.network import Network
from microtome.progress import Progress, Silent
from microtome.results import LayerRow, Run
from microtome.runtimes.base import Runtime, Session
from microtome.staging import Place
from microtome.types import Array

MOST_DB = 200.0
# Values of an output that say whether it is another one altogether: the few of a classifier may all lie about zero.
ENOUGH = 64
# How much faster the network must be with its float part in bf16 before that is chosen.
WORTHWHILE = 0.95


@dataclass(frozen=True)
class Running:
    """How networks are run.

    Attributes:
        threads: of the runtime and of eager PyTorch; 0 is all.
        precision: of what the compressed network leaves in float; None takes the first that the target offers, unless
            another is clearly faster.
    """

    threads: int = 0
    precision: str | None = None


@dataclass(frozen=True)
class Deployed:
    """The exported networks, opened."""

    path: Path
    session: Session
    precision: str
    runs: list[Run]
    layers: list[LayerRow]
    parity_db: float
    quantization_db: float


def deploy(
    parent: Network,
    network: Network,
    target: Runtime,
    x: Array,
    place: Place,
    *,
    title: str,
    running: Running | None = None,
    progress: Progress | None = None,
) -> Deployed:
    """Export parent and compressed network, open them, and look at how they run.

    Args:
        parent: uncompressed.
        network: compressed.
        target: the runtime.
        x: one input, float32 (1, C, *S).
        place: takes the files.
        title: of the compressed network in the table of times, such as the recipe's name.
        running: threads and precision.
        progress: told what is done.

    Raises:
        TargetError: an operator cannot be exported, or the compressed network does not run.
    """
    progress, running = progress or Silent(), running or Running()
    threads, precision = running.threads, running.precision
    parent, network = parent.to("cpu"), network.to("cpu")
    progress.say(f"export to {target.NAME}")
    baseline = place.work / "parent"
    baseline.mkdir(exist_ok=True)
    parent_path, path = target.export(parent, baseline), target.export(network, place.package)

    progress.say("time parent and compressed network, interleaved")
    run_parent = eager(parent, threads)
    real, simulated = run_parent(x), eager(network, threads)(x)
    floats = {} if not target.RUNS_INTEGERS else _open(target, parent_path, target.PRECISIONS, (x, real), threads)
    ours = _open(target, path, target.PRECISIONS if precision is None else (precision,), (x, simulated), threads)
    sizes = file_bytes(target, parent_path), file_bytes(target, path)
    names = {p: _name(target.NAME, title, p, len(ours) > 1) for p in ours}
    runs = interleaved(
        [
            Candidate("eager f32", "pytorch", "f32", run_parent),
            *(Candidate(f"{target.NAME} {p}", target.NAME, p, s.run, sizes[0]) for p, s in floats.items()),
            *(Candidate(names[p], target.NAME, title, s.run, sizes[1], True) for p, s in ours.items()),
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


def _name(target: str, title: str, precision: str, several: bool) -> str:
    """Return what a compressed network is called among the runs; others are called by target and precision."""
    name = f"{target} {title}" + (f", rest {precision}" if several else "")
    return f"{name}, compressed" if title == precision else name


def _open(
    target: Runtime, path: Path, precisions: Sequence[str], example: tuple[Array, Array], threads: int
) -> dict[str, Session]:
    """Open a model file once for each float precision in which it runs on this machine, and run it once.

    Args:
        target: the runtime.
        path: the file.
        precisions: those to try.
        example: an input, and what the graph makes of it.
        threads: of the runtime.

    Raises:
        MicrotomeError: it runs in none, or returns something else than the graph; what the last one said.
    """
    sessions: dict[str, Session] = {}
    for precision in precisions:
        try:
            sessions[precision] = _opened(target, path, precision, example, threads)
        except MicrotomeError as error:
            if precision == precisions[-1] and not sessions:
                raise _advised(error, target, path, precisions, (example, threads)) from error
    return sessions


def _opened(target: Runtime, path: Path, precision: str, example: tuple[Array, Array], threads: int) -> Session:
    """Open a model file and run it once, see `_open`."""
    session = target.open_session(path, threads=threads, precision=precision)
    x, expected = example
    ratio = sqnr(expected, session.run(x))
    if ratio == -MOST_DB:
        raise TargetError(
            f"{target.NAME} returns NaN or infinity in {precision} where the graph does not.",
            "Some value lies beyond what it computes with: choose another --precision or --target.",
        )
    if ratio < 0 and expected.any() and expected.size >= ENOUGH:
        raise TargetError(
            f"{target.NAME} computes something else than the graph in {precision}: {ratio} dB.",
            "It runs an operator of this network wrongly: choose another --target.",
        )
    return session


def _advised(
    error: MicrotomeError, target: Runtime, path: Path, tried: Sequence[str], how: tuple[tuple[Array, Array], int]
) -> MicrotomeError:
    """Return the error with a precision that was not tried, if the file runs in it; the error itself if in none."""
    for precision in (name for name in target.PRECISIONS if name not in tried):
        try:
            _opened(target, path, precision, *how)
        except MicrotomeError:
            continue
        return type(error)(error.problem, f"In {precision} it runs: --precision {precision}")
    return error


def sqnr(signal: Array, other: Array) -> float:
    """Signal-to-quantization-noise ratio in decibels; 200 if both are equal, -200 if one alone is NaN or infinite.

    What is NaN or infinite in both, such as scores outside of a mask, is left out.
    """
    finite = np.isfinite(signal)
    if not np.array_equal(signal[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return -MOST_DB
    if not finite.any():
        return MOST_DB
    signal, other = signal[finite].astype(np.float64), other[finite].astype(np.float64)
    largest = float(np.abs(signal).max()) or 1.0  # squares of 1e200 would be infinite, and those of 1e-200 zero
    noise, power = float(np.square((signal - other) / largest).mean()), float(np.square(signal / largest).mean())
    if noise == 0:
        return MOST_DB
    return round(float(np.clip(10 * np.log10(max(power, 1e-30) / noise), -MOST_DB, MOST_DB)), 2)
