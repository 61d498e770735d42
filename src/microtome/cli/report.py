"""`microtome report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.running import run_verb


@app.command(epilog="Example: microtome report package-a/ package-b/ -o comparison.html")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Packages.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="For several packages: the page to write.")] = None,
) -> None:
    """Write a package's report again, or one page that compares several packages."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.report import report as run

        return {"report": str(run(folders, out))}

    typer.echo(run_verb(verb, False)["report"])
