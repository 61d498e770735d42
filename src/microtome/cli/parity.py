"""`microtome parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import FAULT, app
from microtome.cli.options import Inputs, Json, Threads, places
from microtome.cli.running import run_verb, show


@app.command(epilog="Example: microtome parity package/ scans/ --parent unet.pt2")
def parity(
    package: Annotated[Path, typer.Argument(help="Folder that `compress` wrote.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", help="Image files, DICOM series, or folders that hold them.")
    ],
    target: Annotated[str | None, typer.Option(help="Only this one of the package's targets.")] = None,
    parent: Annotated[
        str | None, typer.Option(help="The uncompressed network: how far compression moved the predictions.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 8,
    input_: Inputs = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Compare each file of a package with the network it was written from: by case, and layer by layer."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.inference.jobs import Given
        from microtome.verbs.parity import parity as run

        return run(
            package,
            Given(images, places(input_)),
            parent=parent,
            target=target,
            cases=cases,
            threads=threads,
            progress=progress,
        )

    result = run_verb(verb, as_json)
    show(result, as_json, "parity_table")
    if any(one.get("departs") for one in result["targets"].values()):
        raise typer.Exit(FAULT)
