"""`microtome predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import FAULT, app
from microtome.cli.options import Inputs, PackageTarget, Threads, places
from microtome.cli.running import run_verb


@app.command(epilog="Example: microtome predict package/ scans/ patient.nii.gz dicom-series/ -o predictions")
def predict(
    package: Annotated[Path, typer.Argument(help="Folder that `compress` wrote.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT…", help="Image files, DICOM series, or folders that hold them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to fill; finished images in it are kept.")],
    target: PackageTarget = None,
    threads: Threads = 0,
    extension: Annotated[
        str, typer.Option(help="Of label maps of volumes: nii.gz, or nii, which is faster.")
    ] = "nii.gz",
    input_: Inputs = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do everything anew, also in a folder that holds something else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers and failures as JSON, nothing else.")] = False,
    overlap: Annotated[float | None, typer.Option(hidden=True)] = None,
    mirror: Annotated[list[int] | None, typer.Option(hidden=True)] = None,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", hidden=True)] = False,
) -> None:
    """Run a package on image files: one label map per image, or a table of class probabilities."""

    def verb(progress: Any) -> dict[str, Any]:
        _refuse({"overlap": overlap is not None, "mirror": bool(mirror), "skip_empty": skip_empty})
        from microtome.inference.jobs import Given
        from microtome.verbs.predict import predict as run

        return run(
            package,
            Given(inputs, places(input_)),
            out,
            target=target,
            threads=threads,
            overwrite=overwrite,
            extension=extension,
            progress=progress,
        )

    result = run_verb(verb, as_json)
    if as_json:
        typer.echo(json.dumps(result, default=float))
    else:
        _summary(result)
    if result["failed"]:
        raise typer.Exit(FAULT)


def _refuse(given: dict[str, bool]) -> None:
    """Refuse what predictions could be told before evidence was measured in the same way as they are made.

    Raises:
        OptionError: an option that is a field of the pipeline now.
    """
    from microtome.errors import OptionError

    for name in (name for name, there in given.items() if there):
        raise OptionError(
            f"--{name.replace('_', '-')} is no longer told to predict: no evidence was measured with it.",
            f"Set '{name}' in pipeline.json and compress again.",
        )


def _summary(result: dict[str, Any]) -> None:
    """Print how many images and how fast; what failed goes to standard error."""
    from microtome.errors import MicrotomeError
    from microtome.terminal import complain

    rate = f" in {result['seconds']:.1f} s, {result['cases_per_second']:.2f} per second" if result["cases"] else ""
    skipped = f", {result['skipped']} were finished before" if result["skipped"] else ""
    typer.echo(f"{result['cases']} image{'s' * (result['cases'] != 1)}{rate}{skipped}: {result['out']}")
    if result["stages"]:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in result["stages"].items())
        typer.echo(f"Median milliseconds: {stages}. Peak memory: {result['peak_memory_mib']:.0f} MiB")
    for note in result["notes"]:
        typer.echo(f"Note: {note}")
    for failure in result["failed"]:
        complain(MicrotomeError(f"{failure['name']}: {failure['problem']}", failure["hint"]))
