"""The `microtome` command itself; each of its commands is a module of this package."""

from __future__ import annotations

from typing import Annotated

import typer

from microtome.version import __version__

app = typer.Typer(
    name="microtome",
    help="Compress medical-imaging networks, and show that nothing clinical was lost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compress medical-imaging networks, and show that nothing clinical was lost."""
    if version:
        typer.echo(f"microtome {__version__}")
        raise typer.Exit
