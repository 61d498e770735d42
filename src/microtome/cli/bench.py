"""`microtome bench`."""

from __future__ import annotations

from typing import Any

from microtome.cli.app import app
from microtome.cli.options import InputShape, Json, Model, OneTarget, Output, PipelineFile, Threads, Weights, shape
from microtome.cli.running import run_verb, show


@app.command(epilog="Example: microtome bench package/ --threads 2")
def bench(
    model: Model,
    target: OneTarget = None,
    weights: Weights = None,
    pipeline: PipelineFile = None,
    output: Output = None,
    input_shape: InputShape = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Time a package or a model: whole and per layer, with the kernels that really ran."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.bench import bench as run

        return run(
            model,
            target=target,
            weights=weights,
            pipeline=pipeline,
            output=output,
            input_shape=shape(input_shape),
            threads=threads,
            progress=progress,
        )

    result = run_verb(verb, as_json)
    show(result, as_json, "bench_table")
