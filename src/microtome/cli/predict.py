"""`microtome predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import Threads
from microtome.cli.running import FAULT, run_verb


@app.command(epilog="Example: microtome predict package/ scans/ patient.nii.gz dicom-series/ -o predictions")
def predict(
    package: Annotated[Path, typer.Argument(help="Folder that `compress` wrote.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT…", help="Image files, DICOM series, or folders that hold them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to fill; finished images in it are kept.")],
    threads: Threads = 0,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of neighbouring windows, instead of the package's.")
    ] = None,
    mirror: Annotated[
        list[int] | None,
        typer.Option(
            metavar="AXIS",
            help="Average over both directions of this axis of the network's grid (0, 1, 2); may be repeated. Each "
            "doubles the time.",
        ),
    ] = None,
    skip_empty: Annotated[
        bool,
        typer.Option(
            help="Do not run windows that hold one value only, such as air: they count as background. The result may "
            "differ."
        ),
    ] = False,
    extension: Annotated[
        str, typer.Option(help="Of label maps of volumes: nii.gz, or nii, which is faster.")
    ] = "nii.gz",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do everything anew, also in a folder that holds something else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers and failures as JSON, nothing else.")] = False,
) -> None:
    """Run a package on image files: one label map per image, or a table of class probabilities."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.predict import predict as run

        return run(
            package,
            inputs,
            out,
            threads=threads,
            overlap=overlap,
            mirror=tuple(mirror or ()),
            skip_empty=skip_empty,
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
    for failure in result["failed"]:
        complain(MicrotomeError(f"{failure['name']}: {failure['problem']}", failure["hint"]))
