"""`microtome recipes`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microtome.cli.app import app
from microtome.cli.running import run_verb

commands = typer.Typer(invoke_without_command=True, epilog="Example: microtome recipes show int8 > mine.toml")
app.add_typer(commands, name="recipes")


@commands.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes, or show one, to be copied and edited."""
    if context.invoked_subcommand is not None:
        return
    from microtome.recipes.files import load, names

    width = max(len(name) for name in names())
    for name in names():
        typer.echo(f"{name:{width}}  {load(name).description}")


@commands.command(epilog="Example: microtome recipes show qat > mine.toml")
def show(name: Annotated[str, typer.Argument(help="Of a recipe.")]) -> None:
    """Print a recipe as the file that it is; `compress --recipe` takes an edited copy."""

    def verb(progress: Any) -> dict[str, Any]:
        from microtome.recipes.files import find

        return {"text": find(name).read_text(encoding="utf-8")}

    typer.echo(run_verb(verb, quietly=True)["text"], nl=False)
