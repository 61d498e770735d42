"""`microtome inspect`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import InputShape, Json, Model, PipelineFile, Weights, shape
from microtome.cli.running import run_verb, show


@app.command(epilog="Example: microtome inspect unet.py:make --weights unet.pt --input-shape 1,256,256")
def inspect(
    model: Model,
    target: Annotated[str | None, typer.Option(help="Only this target; otherwise all that are installed.")] = None,
    weights: Weights = None,
    pipeline: PipelineFile = None,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Show what each layer costs and what each target would run it in."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.inspect import inspect as run

        return run(model, target=target, weights=weights, pipeline=pipeline, input_shape=shape(input_shape))

    result = run_verb(verb, as_json)
    show(result, as_json, "inspect_table")
