"""`microtome evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import (
    CohortPath,
    Configuration,
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
    PackageTarget,
    PatientPattern,
    PipelineFields,
    PipelineFile,
    Preset,
    Seed,
    Threads,
    TrainedOn,
    Weights,
    options_of,
)
from microtome.cli.running import finish, run_verb
from microtome.results import Result


@app.command(epilog="Example: microtome evaluate package/ other-hospital/ -o evaluation --parent unet.pt2")
def evaluate(
    model: Model,
    cohort: CohortPath,
    out: Out,
    parent: Annotated[str | None, typer.Option(help="The uncompressed network to compare with.")] = None,
    package_target: PackageTarget = None,
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
    tuning: Annotated[float, typer.Option(min=0, max=1, help="Share of patients for the operating point.")] = 0.0,
    evaluation: Annotated[float, typer.Option(min=0, max=1, help="Share of patients to evaluate; 1 is all.")] = 1.0,
    trained_on: TrainedOn = None,
    metric: Metric = None,
    margin: Margin = None,
    seed: Seed = 0,
    threads: Threads = 0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Evaluate a package or a model on a cohort, alone or against its parent."""
    given = dict(locals())

    def verb(progress: Any) -> Result:
        from microtome.verbs.evaluate import evaluate as run
        from microtome.verbs.request import write_key

        options = options_of(given)
        if key is not None:
            write_key(key, cohort, options)
        return run(model, cohort, out, parent=parent, target=package_target, options=options, progress=progress)

    finish(run_verb(verb, as_json), as_json, out)
