"""`bench`: how long a package or a model takes, whole and per layer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from microtome.environment import describe, peak_memory_mib
from microtome.errors import MicrotomeError, OptionError
from microtome.medical.pipeline import Pipeline
from microtome.package import open_package
from microtome.progress import Progress, Silent
from microtome.runtimes import runtime
from microtome.runtimes.base import Session
from microtome.types import Array
from microtome.verbs.timing import Candidate, eager, file_bytes, interleaved


def bench(
    model: str | Path,
    *,
    target: str = "openvino",
    weights: Path | None = None,
    pipeline: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a package on its runtime, or a model in eager PyTorch and uncompressed on a target.

    Args:
        model: a package, or anything that `compress` takes.
        target: for models; a package knows its own.
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
    folder = Path(model)
    if (folder / "result.json").exists():
        package = open_package(folder, threads=threads)
        shape = input_shape or tuple(package.result["input"]["shape"][1:])
        x = _noise(shape)
        name = f"{package.result['target']} {package.result['recipe']}"
        candidates = [
            Candidate(name, name, "", package.session.run, package.result["compressed"]["bytes"], compressed=True)
        ]
        return _measure(candidates, package.session, x, threads, progress)
    from microtome.models import load_model

    declared = Pipeline.from_json(pipeline.read_text()) if pipeline is not None else None
    loaded = load_model(str(model), weights=weights, input_shape=input_shape, pipeline=declared)
    x = _noise(input_shape or loaded.network.shape)
    chosen = runtime(target)
    with tempfile.TemporaryDirectory() as scratch:
        progress.say(f"export to {target}")
        path = chosen.export(loaded.network, Path(scratch))
        candidates = [Candidate("eager f32", "pytorch", "f32", eager(loaded.network, threads))]
        last: Session | None = None
        failure: MicrotomeError | None = None
        for precision in chosen.PRECISIONS:
            try:
                session = chosen.open_session(path, threads=threads, precision=precision)
                session.run(x)
            except MicrotomeError as error:
                failure = error
                progress.say(f"{target} {precision}: {error.problem}")
                continue
            last = last or session
            candidates.append(
                Candidate(f"{target} {precision}", target, precision, session.run, file_bytes(chosen, path))
            )
        if last is None:
            raise failure or OptionError(f"{target} offers no precision.")
        return _measure(candidates, last, x, threads, progress)


def _measure(
    candidates: list[Candidate], session: Session, x: Array, threads: int, progress: Progress
) -> dict[str, Any]:
    progress.say("time " + ", ".join(candidate.name for candidate in candidates))
    layers = sorted(session.layer_runs(x), key=lambda run: -(run.latency_ms or 0.0))
    return {
        "input": list(x.shape),
        "runs": interleaved(candidates, x),
        "layers": [
            {"name": r.names[0], "op": r.op, "executed": r.executed, "kernel": r.kernel, "latency_ms": r.latency_ms}
            for r in layers
        ],
        "memory": {"bench_peak_mib": peak_memory_mib()},
        "environment": describe(threads),
    }


def _noise(shape: tuple[int, ...]) -> Array:
    """Return a fixed random input, float32 (1, C, *S)."""
    return np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
