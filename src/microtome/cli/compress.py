"""`microtome compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from microtome.cli.app import app
from microtome.cli.options import (
    COHORT,
    EVIDENCE,
    RECIPE,
    RUN,
    CohortPath,
    Configuration,
    Evaluation,
    Fold,
    Format,
    Inputs,
    InputShape,
    Json,
    Key,
    Margin,
    Metric,
    Model,
    Out,
    Output,
    PatientPattern,
    PipelineFields,
    PipelineFile,
    Preset,
    Seed,
    Targets,
    Threads,
    TrainedOn,
    Tuning,
    Weights,
    one_of,
    options_of,
)
from microtome.cli.running import finish, run_verb
from microtome.recipes.files import names
from microtome.results import Result
from microtome.types import CalibrationChoice, ObserverName


@app.command(epilog="Example: microtome compress unet.pt2 cohort/ -o package --target openvino")
def compress(
    model: Model,
    cohort: CohortPath,
    out: Out,
    target: Targets = None,
    recipe: Annotated[
        str,
        typer.Option(
            help=f"{one_of(names())} (`microtome recipes` tells them apart); auto, which tries from cheap to expensive "
            "until nothing is lost; or a TOML file."
        ),
    ] = "int8",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="METHOD.FIELD=VALUE",
            help="A setting of the recipe's methods, such as quantize.weight_bits=4; may be repeated.",
        ),
    ] = None,
    weight_bits: Annotated[
        str | None,
        typer.Option(help="Width of weights: 2 to 16, or float; otherwise the recipe's.", rich_help_panel=RECIPE),
    ] = None,
    activation_bits: Annotated[
        str | None,
        typer.Option(help="Width of layers' inputs: 1 to 16, or float; likewise.", rich_help_panel=RECIPE),
    ] = None,
    observer: Annotated[
        str | None,
        typer.Option(
            help=f"How activation ranges are found: {one_of(get_args(ObserverName))}; otherwise the recipe's.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="A layer that stays in float; may be repeated.", rich_help_panel=RECIPE),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per step of training.", rich_help_panel=RECIPE)] = 4,
    flip: Annotated[
        list[int] | None,
        typer.Option(help="Spatial axis that training may mirror; may be repeated.", rich_help_panel=RECIPE),
    ] = None,
    worst_subgroup: Annotated[
        bool,
        typer.Option(help="auto: no subgroup may lose more than the margin either.", rich_help_panel=RECIPE),
    ] = False,
    faster_than: Annotated[
        float | None,
        typer.Option(
            help="auto goes on, into pruning and distillation, until it is so many times faster than eager PyTorch.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    smaller_than: Annotated[
        float | None,
        typer.Option(
            help="Likewise, until the file is so many times smaller than the float32 weights.", rich_help_panel=RECIPE
        ),
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Minutes after which auto tries nothing more.", rich_help_panel=RECIPE)
    ] = None,
    placement: Annotated[
        str,
        typer.Option(
            help="Where integers pay: by rules, or measured on this machine (kept for the next time).",
            rich_help_panel=RECIPE,
        ),
    ] = "rules",
    placement_minutes: Annotated[
        float, typer.Option(min=0, help="Time for measuring placement.", rich_help_panel=RECIPE)
    ] = 3.0,
    precision: Annotated[
        str,
        typer.Option(help="Of what stays in float: f32, bf16, or auto for the faster.", rich_help_panel=RECIPE),
    ] = "auto",
    coded: Annotated[
        bool | None,
        typer.Option(
            help="Entropy-code the package's model files into one; otherwise as the recipe says.",
            rich_help_panel=RECIPE,
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    pipeline: PipelineFile = None,
    with_: PipelineFields = None,
    preset: Preset = None,
    fold: Fold = None,
    configuration: Configuration = None,
    output: Output = None,
    input_: Inputs = None,
    input_shape: InputShape = None,
    format_: Format = None,
    patient_pattern: PatientPattern = None,
    calibration_cases: Annotated[
        int, typer.Option(min=1, help="Cases to find ranges on.", rich_help_panel=COHORT)
    ] = 32,
    calibration_choice: Annotated[
        str,
        typer.Option(help=f"How they are chosen: {one_of(get_args(CalibrationChoice))}.", rich_help_panel=COHORT),
    ] = "first",
    calibration: Annotated[
        Path | None, typer.Option(help="Another cohort, to calibrate on all of its cases.", rich_help_panel=COHORT)
    ] = None,
    tuning: Tuning = 0.1,
    evaluation: Evaluation = 0.3,
    trained_on: TrainedOn = None,
    key: Key = None,
    metric: Metric = None,
    margin: Margin = None,
    title: Annotated[str | None, typer.Option(help="Of the report.", rich_help_panel=EVIDENCE)] = None,
    seed: Seed = 0,
    threads: Threads = 0,
    device: Annotated[
        str, typer.Option(help="Where calibration and the parent run: cpu or cuda.", rich_help_panel=RUN)
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Compress a network and measure what that did: makes a package with the evidence."""
    given = dict(locals())

    def verb(progress: Any) -> Result:
        from microtome.verbs.compress import compress as run
        from microtome.verbs.request import write_key

        options = options_of(given)
        if key is not None:
            write_key(key, cohort, options)
        return run(model, cohort, out, options=options, progress=progress)

    finish(run_verb(verb, as_json), as_json, out)
