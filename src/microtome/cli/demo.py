"""`microtome demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.options import Json, Out, Target, Threads
from microtome.cli.running import finish, run_verb
from microtome.results import Result


@app.command(epilog="Example: microtome demo -o microtome-demo")
def demo(
    out: Out = Path("microtome-demo"),
    target: Target = "openvino",
    cases: Annotated[int, typer.Option(min=40, help="Phantom slices to make.")] = 160,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Compress the built-in phantom network, with everything that `compress` does. Needs no data and no network."""

    def verb(progress: Any) -> Result:
        from microtome.demo.run import demo as run

        return run(out, target=target, cases=cases, threads=threads, progress=progress)

    finish(run_verb(verb, as_json), as_json, out)
