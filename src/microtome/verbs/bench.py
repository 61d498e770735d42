"""`bench`: how long a package or a model takes, whole and per layer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.deployment.timing import Candidate, eager, file_bytes, interleaved
from microtome.environment import describe, peak_memory_mib
from microtome.errors import MicrotomeError
from microtome.medical.pipeline import Pipeline
from microtome.package import open_package
from microtome.progress import Progress, Silent
from microtome.runtimes import runtime
from microtome.runtimes.base import Runtime, Session
from microtome.types import Array

if TYPE_CHECKING:
    from microtome.graph.network import Network


def bench(
    model: str | Path,
    *,
    target: str | None = None,
    weights: Path | None = None,
    pipeline: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a package on its runtime, or a model in eager PyTorch and uncompressed on a target.

    Args:
        model: a package, or anything that `compress` takes.
        target: which of a package's, None is its first; for models any, None is openvino.
        weights: for `file.py:factory`.
        pipeline: for models without one.
        input_shape: (C, *S); None takes what the pipeline or the package says.
        threads: 0 is all cores.
        progress: told what is timed.

    Returns:
        `input`, `runs` (as in `result.json`), `layers` by time, `memory`, `environment`.

    Raises:
        MicrotomeError: of the kind that says what is wrong.
    """
    progress = progress or Silent()
    if (Path(model) / "result.json").exists():
        return _bench_package(Path(model), target, input_shape, threads, progress)
    from microtome.models import load_model

    declared = Pipeline.from_json(pipeline.read_text()) if pipeline is not None else None
    loaded = load_model(str(model), weights=weights, input_shape=input_shape, pipeline=declared)
    return _bench_network(loaded.network, runtime(target or "openvino"), threads, progress)


def _bench_package(
    folder: Path, target: str | None, shape: tuple[int, ...] | None, threads: int, progress: Progress
) -> dict[str, Any]:
    package = open_package(folder, target=target, threads=threads)
    deployed, result = package.session, package.result
    name = f"{result['target']} {result['recipe']}"
    candidate = Candidate(
        name, result["target"], result["recipe"], deployed.run, result["compressed"]["bytes"], compressed=True
    )
    layers = [row["name"] for row in result.get("layers", ())]
    x = _noise(shape or result["input"]["shape"][1:])
    deployed.run(x)
    return _measure([candidate], deployed, layers, x, threads, progress)


def _bench_network(network: Network, chosen: Runtime, threads: int, progress: Progress) -> dict[str, Any]:
    x = _noise(network.shape)
    run = eager(network, threads)
    run(x)
    candidates = [Candidate("eager f32", "pytorch", "f32", run)]
    sessions: list[Session] = []
    with tempfile.TemporaryDirectory() as scratch:
        progress.say(f"export to {chosen.NAME}")
        path = chosen.export(network, Path(scratch))
        for precision in chosen.PRECISIONS:
            try:
                session = chosen.open_session(path, threads=threads, precision=precision)
                session.run(x)
            except MicrotomeError as error:
                if precision == chosen.PRECISIONS[-1] and not sessions:
                    raise
                progress.say(f"{chosen.NAME} {precision}: {error.problem}")
                continue
            sessions.append(session)
            name, size = f"{chosen.NAME} {precision}", file_bytes(chosen, path)
            candidates.append(Candidate(name, chosen.NAME, precision, session.run, size))
        return _measure(candidates, sessions[0], [layer.name for layer in network.layers], x, threads, progress)


def _measure(
    candidates: list[Candidate],
    session: Session,
    layers: Sequence[str],
    x: Array,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Time the candidates, and list the operators of one session, longest first, under the layers' names."""
    progress.say("time " + ", ".join(candidate.name for candidate in candidates))
    runs = sorted(session.layer_runs(x), key=lambda run: -(run.latency_ms or 0.0))
    return {
        "input": list(x.shape),
        "runs": interleaved(candidates, x),
        "layers": [
            {
                "name": next((layer for layer in layers if run.runs(layer)), run.names[0]),
                "op": run.op,
                "executed": run.executed,
                "kernel": run.kernel,
                "latency_ms": run.latency_ms,
            }
            for run in runs
        ],
        "memory": {"bench_peak_mib": peak_memory_mib()},
        "environment": describe(threads),
    }


def _noise(shape: Sequence[int]) -> Array:
    """Return a fixed random input, float32 (1, C, *S)."""
    return np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
