"""`microtome inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import (
    COHORT,
    Configuration,
    Evaluation,
    Fold,
    Format,
    Inputs,
    InputShape,
    Json,
    Model,
    Output,
    PatientPattern,
    PipelineFields,
    PipelineFile,
    Preset,
    Seed,
    TrainedOn,
    Tuning,
    Weights,
    options_of,
)
from microtome.cli.running import run_verb, show


@app.command(epilog="Example: microtome inspect unet.py:make --weights unet.pt --cohort scans/ --write-pipeline p.json")
def inspect(
    model: Model,
    only: Annotated[
        str | None, typer.Option("--target", help="Only this target; otherwise all that are installed.")
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
    cohort: Annotated[
        Path | None,
        typer.Option(
            help="Labelled cases: shows split, classes, one case and the pipeline, guessed where nobody says it.",
            rich_help_panel=COHORT,
        ),
    ] = None,
    write_pipeline: Annotated[
        Path | None,
        typer.Option(
            help="File to make with the pipeline, to be corrected and given as --pipeline.", rich_help_panel=COHORT
        ),
    ] = None,
    format_: Format = None,
    patient_pattern: PatientPattern = None,
    tuning: Tuning = 0.1,
    evaluation: Evaluation = 0.3,
    trained_on: TrainedOn = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show what each layer costs and what each target would run it in; with a cohort also what compress would see."""
    given = dict(locals())

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.inspect import inspect as run

        return run(
            model,
            target=only,
            cohort=cohort,
            write_pipeline=write_pipeline,
            options=options_of(given),
            progress=progress,
        )

    result = run_verb(verb, as_json)
    if as_json and "cohort" in result:
        del result["cohort"]["patients"]["examples"]  # what is printed may end in a log
    show(result, as_json, "inspect_table")
