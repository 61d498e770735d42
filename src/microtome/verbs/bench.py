"""`bench`: how long a package or a model takes, whole and per layer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.deployment.timing import Candidate, eager, file_bytes, interleaved
from microtome.environment import describe, peak_memory_mib
from microtome.errors import MicrotomeError
from microtome.medical.inputs import image_of
from microtome.medical.pipeline import Pipeline
from microtome.package import open_package
from microtome.progress import Progress, Silent
from microtome.runtimes import runtime
from microtome.runtimes.base import Runtime, Session
from microtome.types import Batch, Port

if TYPE_CHECKING:
    from microtome.graph.network import Network


def bench(
    model: str | Path,
    *,
    target: str | None = None,
    weights: Path | None = None,
    pipeline: Path | None = None,
    output: str | None = None,
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
        output: of models: the one with the scores, where there are several that might.
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
    from microtome.models.base import Part

    declared = Pipeline.from_json(pipeline.read_text()) if pipeline is not None else None
    loaded = load_model(
        str(model), weights=weights, input_shape=input_shape, pipeline=declared, part=Part(output=output)
    )
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
    x = _noise(_ports(deployed.inputs, result, shape), several=len(deployed.outputs) > 1)
    deployed.run(x)
    return _measure([candidate], deployed, layers, x, threads, progress)


def _bench_network(network: Network, chosen: Runtime, threads: int, progress: Progress) -> dict[str, Any]:
    x = _noise({port.name: port.shape for port in network.inputs}, several=len(network.outputs) > 1)
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
    x: Batch,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Time the candidates, and list the operators of one session, longest first, under the layers' names."""
    progress.say("time " + ", ".join(candidate.name for candidate in candidates))
    runs = sorted(session.layer_runs(x), key=lambda run: -(run.latency_ms or 0.0))
    return {
        "input": list(image_of(x).shape),
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


def _ports(
    inputs: Sequence[Port], result: Mapping[str, Any], shape: tuple[int, ...] | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a package takes, by name: those that it was captured with, or for images of `shape`."""
    image, *_ = inputs
    captured = {port["name"]: tuple(port["shape"]) for port in result.get("inputs", ())}
    own = captured.get(image.name, tuple(result["input"]["shape"][1:]))
    shapes = {port.name: captured.get(port.name, port.shape) for port in inputs} | {image.name: own}
    if shape is None:
        return shapes
    alike = {name: (one[0], *shape[1:]) for name, one in shapes.items() if len(one) > 1 and one[1:] == own[1:]}
    return shapes | alike | {image.name: shape}


def _noise(shapes: Mapping[str, Sequence[int]], *, several: bool) -> Batch:
    """Return a fixed random input, float32 (1, C, *S); of several inputs or outputs by name."""
    rng = np.random.default_rng(0)
    found = {name: rng.standard_normal((1, *shape), dtype=np.float32) for name, shape in shapes.items()}
    return found if several or len(found) > 1 else image_of(found)
