"""`microtome compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import (
    CohortPath,
    Format,
    InputShape,
    Json,
    Key,
    Margin,
    Metric,
    Model,
    Out,
    PatientPattern,
    PipelineFile,
    Seed,
    Targets,
    Threads,
    Weights,
    options_of,
)
from microtome.cli.running import finish, run_verb


@app.command(epilog="Example: microtome compress unet.pt2 cohort/ -o package --target openvino")
def compress(
    model: Model,
    cohort: CohortPath,
    out: Out,
    target: Targets = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="int8, equalized, gptq, adaround, reconstruct, mixed, qat, ternary, binary; f32 for comparison; auto "
            "tries from cheap to expensive until nothing is lost."
        ),
    ] = "int8",
    weight_bits: Annotated[str, typer.Option(help="Width of weights: 2 to 16, or float.")] = "8",
    activation_bits: Annotated[str, typer.Option(help="Width of layers' inputs: 1 to 16, or float.")] = "8",
    weight_format: Annotated[
        str | None,
        typer.Option(
            help="codebook, power_of_two, additive, logarithmic, ternary, binary, fp8, fp16 or bf16 weights, with int8."
        ),
    ] = None,
    average_bits: Annotated[float, typer.Option(help="Average width of weights, for mixed.")] = 4.0,
    steps: Annotated[int | None, typer.Option(help="Of training, or of reconstruction per block.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per step of training.")] = 4,
    flip: Annotated[
        list[int] | None, typer.Option(help="Spatial axis that training may mirror; may be repeated.")
    ] = None,
    worst_subgroup: Annotated[
        bool, typer.Option(help="auto: no subgroup may lose more than the margin either.")
    ] = False,
    time_budget: Annotated[float | None, typer.Option(help="Minutes after which auto tries nothing more.")] = None,
    weights: Weights = None,
    pipeline: PipelineFile = None,
    input_shape: InputShape = None,
    format_: Format = None,
    patient_pattern: PatientPattern = None,
    calibration_cases: Annotated[int, typer.Option(min=1, help="Cases to find ranges on.")] = 32,
    calibration_choice: Annotated[
        str, typer.Option(help="first, random, stratified, foreground or diverse.")
    ] = "first",
    calibration: Annotated[Path | None, typer.Option(help="Another cohort, to calibrate on all of its cases.")] = None,
    tuning: Annotated[float, typer.Option(min=0, max=1, help="Share of patients for tuning.")] = 0.1,
    evaluation: Annotated[float, typer.Option(min=0, max=1, help="Share of patients for evaluation.")] = 0.3,
    metric: Metric = None,
    margin: Margin = None,
    observer: Annotated[str, typer.Option(help="minmax, moving_average, percentile, mse or kl.")] = "mse",
    percentile: Annotated[float, typer.Option(help="For that observer.")] = 99.99,
    skip: Annotated[list[str] | None, typer.Option(help="A layer that stays in float; may be repeated.")] = None,
    placement: Annotated[
        str, typer.Option(help="Where integers pay: by rules, or measured on this machine (kept for the next time).")
    ] = "rules",
    placement_minutes: Annotated[float, typer.Option(min=0, help="Time for measuring placement.")] = 3.0,
    precision: Annotated[str, typer.Option(help="Of what stays in float: f32, bf16, or auto for the faster.")] = "auto",
    seed: Seed = 0,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="Where calibration and the parent run: cpu or cuda.")] = "cpu",
    title: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Compress a network and measure what that did: makes a package with the evidence."""
    given = dict(locals())

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.compress import compress as run
        from microtome.verbs.request import write_key

        options = options_of(given)
        if key is not None:
            write_key(key, cohort, options)
        return run(model, cohort, out, options=options, progress=progress)

    finish(run_verb(verb, as_json), as_json, out)
