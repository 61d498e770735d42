"""The command line: parse, call one verb, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from microtome import __version__
from microtome.errors import MicrotomeError, MissingExtraError

INFERIOR, FAULT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="microtome",
    help="Compress medical-imaging networks, and show that nothing clinical was lost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(help="file.py:factory, package.module:factory, a .pt2 file, a MONAI bundle folder, or a package."),
]
CohortPath = Annotated[Path, typer.Argument(help="Labelled cases: a folder, an .npz file, or a CSV manifest.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")]
Weights = Annotated[Path | None, typer.Option(help="Weights for file.py:factory (.pt, .pth, .safetensors).")]
PipelineFile = Annotated[
    Path | None,
    typer.Option("--pipeline", help="pipeline.json; otherwise the model's own, or a guess from the cohort."),
]
InputShape = Annotated[str | None, typer.Option(help="C,H,W or C,D,H,W that the network can take.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="medmnist, class_folders, image_masks, decathlon, manifest or dicom; otherwise found by looking.",
    ),
]
PatientPattern = Annotated[str | None, typer.Option(help="Regular expression for the patient in a file name.")]
Seed = Annotated[int, typer.Option(help="Of the split, the calibration windows and the bootstrap.")]
Threads = Annotated[int, typer.Option(min=0, help="Of the runtime and of eager PyTorch; 0 is all cores.")]
Metric = Annotated[str | None, typer.Option(help="What the verdict rests on: dice, nsd, auroc, auprc, …")]
Margin = Annotated[float | None, typer.Option(help="Acceptable loss (default: Dice 0.005, AUROC 0.01).")]
Json = Annotated[bool, typer.Option("--json", help="Print result.json and nothing else.")]
Key = Annotated[
    Path | None,
    typer.Option(help="Also write which file each pseudonym stands for. Identifies patients: keep it in the hospital."),
]
Target = Annotated[str, typer.Option(help="openvino, onnxruntime or reference.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compress medical-imaging networks, and show that nothing clinical was lost."""
    if version:
        typer.echo(f"microtome {__version__}")
        raise typer.Exit


@app.command(epilog="Example: microtome compress unet.pt2 cohort/ -o package --target openvino")
def compress(
    model: Model,
    cohort: CohortPath,
    out: Out,
    target: Target = "openvino",
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
    precision: Annotated[str, typer.Option(help="Of what stays in float: f32, bf16, or auto for the faster.")] = "auto",
    seed: Seed = 0,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="Where calibration and the parent run: cpu or cuda.")] = "cpu",
    title: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Compress a network and measure what that did: makes a package with the evidence."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.compress import compress as run
        from microtome.verbs.task import CompressOptions, write_key

        options = CompressOptions(
            target=target,
            recipe=recipe,
            weights=weights,
            input_shape=_shape(input_shape),
            pipeline=pipeline,
            format=format_,
            patient_pattern=patient_pattern,
            calibration=calibration,
            calibration_cases=calibration_cases,
            calibration_choice=calibration_choice,
            tuning=tuning,
            evaluation=evaluation,
            metric=metric,
            margin=margin,
            observer=observer,
            percentile=percentile,
            skip=tuple(skip or ()),
            weight_bits=_bits(weight_bits, "--weight-bits"),
            activation_bits=_bits(activation_bits, "--activation-bits"),
            weight_format=weight_format,
            average_bits=average_bits,
            steps=steps,
            batch=batch,
            flips=tuple(flip or ()),
            worst_subgroup=worst_subgroup,
            time_budget=time_budget,
            precision=precision,
            seed=seed,
            threads=threads,
            device=device,
            title=title,
        )
        if key is not None:
            write_key(key, cohort, options)
        return run(model, cohort, out, options=options, progress=progress)

    _finish(_run(verb, as_json), as_json, out)


@app.command(epilog="Example: microtome evaluate package/ other-hospital/ -o evaluation --parent unet.pt2")
def evaluate(
    model: Model,
    cohort: CohortPath,
    out: Out,
    parent: Annotated[str | None, typer.Option(help="The uncompressed network to compare with.")] = None,
    weights: Weights = None,
    pipeline: PipelineFile = None,
    input_shape: InputShape = None,
    format_: Format = None,
    patient_pattern: PatientPattern = None,
    tuning: Annotated[float, typer.Option(min=0, max=1, help="Share of patients for the operating point.")] = 0.0,
    evaluation: Annotated[float, typer.Option(min=0, max=1, help="Share of patients to evaluate; 1 is all.")] = 1.0,
    metric: Metric = None,
    margin: Margin = None,
    seed: Seed = 0,
    threads: Threads = 0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Evaluate a package or a model on a cohort, alone or against its parent."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.evaluate import evaluate as run
        from microtome.verbs.task import CompressOptions, write_key

        options = CompressOptions(
            weights=weights,
            input_shape=_shape(input_shape),
            pipeline=pipeline,
            format=format_,
            patient_pattern=patient_pattern,
            tuning=tuning,
            evaluation=evaluation,
            metric=metric,
            margin=margin,
            seed=seed,
            threads=threads,
        )
        if key is not None:
            write_key(key, cohort, options)
        return run(model, cohort, out, parent=parent, options=options, progress=progress)

    _finish(_run(verb, as_json), as_json, out)


@app.command(epilog="Example: microtome bench package/ --threads 2")
def bench(
    model: Model,
    target: Target = "openvino",
    weights: Weights = None,
    pipeline: PipelineFile = None,
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
            input_shape=_shape(input_shape),
            threads=threads,
            progress=progress,
        )

    result = _run(verb, as_json)
    _print(result, as_json, "bench_table")


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

        return run(model, target=target, weights=weights, pipeline=pipeline, input_shape=_shape(input_shape))

    result = _run(verb, as_json)
    _print(result, as_json, "inspect_table")


@app.command(epilog="Example: microtome report package-a/ package-b/ -o comparison.html")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Packages.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="For several packages: the page to write.")] = None,
) -> None:
    """Write a package's report again, or one page that compares several packages."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.report.comparison import write_comparison
        from microtome.report.html import write_report

        if len(folders) == 1 and out is None:
            return {"report": str(write_report(folders[0]))}
        return {"report": str(write_comparison(folders, out or Path("comparison.html")))}

    typer.echo(_run(verb, False)["report"])


@app.command(epilog="Example: microtome demo -o microtome-demo")
def demo(
    out: Out = Path("microtome-demo"),
    target: Target = "openvino",
    cases: Annotated[int, typer.Option(min=40, help="Phantom slices to make.")] = 160,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Compress the built-in phantom network, with everything that `compress` does. Needs no data and no network."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.demo.run import demo as run

        return run(out, target=target, cases=cases, threads=threads, progress=progress)

    _finish(_run(verb, as_json), as_json, out)


def main() -> None:
    """Entry point of the `microtome` command."""
    app()


def _shape(text: str | None) -> tuple[int, ...] | None:
    """Parse `C,H,W`."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise typer.BadParameter(f"{text!r} is not a shape like 1,256,256 or 1,96,96,96", param_hint="--input-shape")
    return shape


def _bits(text: str, option: str) -> int | None:
    """Parse a width, or `float`."""
    if text == "float":
        return None
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is neither a number of bits nor `float`", param_hint=option)
    return int(text)


def _run(verb: Callable[[Any], dict[str, Any]], quietly: bool) -> dict[str, Any]:
    """Call a verb; turn what a user can mend into one sentence and an exit code."""
    from microtome.progress import Silent
    from microtome.terminal import RichProgress, complain

    try:
        if quietly:
            return verb(Silent())
        with RichProgress() as progress:
            return verb(progress)
    except MicrotomeError as error:
        complain(error)
        raise typer.Exit(FAULT) from error
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "safetensors"):
            raise
        complain(MissingExtraError("This", "torch"))
        raise typer.Exit(FAULT) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is finished is kept: the same command goes on from there.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _finish(result: dict[str, Any], as_json: bool, out: Path) -> None:
    """Print a result, and end with 1 if the compressed network is inferior."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=float) + "\n")
    else:
        from microtome.terminal import print_result

        print_result(result, out)
    if result.get("verdict", {}).get("non_inferior") is False:
        raise typer.Exit(INFERIOR)


def _print(result: dict[str, Any], as_json: bool, table: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result, default=float) + "\n")
        return
    from microtome import terminal

    getattr(terminal, table)(result)
