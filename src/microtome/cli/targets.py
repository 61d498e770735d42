"""`microtome targets`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import Json
from microtome.cli.running import run_verb, show


@app.command(epilog="Example: microtome targets --target litert")
def targets(
    target: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the targets: what each runs in integers, whether it is installed, and what installs it."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.verbs.reach import targets as run

        return run(only=target)

    show(run_verb(verb, as_json), as_json, "targets_table")
