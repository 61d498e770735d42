"""The `microtome` command itself; each of its commands is a module of this package."""

from __future__ import annotations

import sys
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from microtome import crash
from microtome.errors import MicrotomeError
from microtome.version import __version__

FAULT = 2  # something that a user can mend
USAGE = cast(type[Exception], typer.BadParameter.__base__)


class Guarded(TyperGroup):
    """The command, of which no crash ends with the exit code of a verdict."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command: what it raises but an exit code and what typer says of its options is a crash."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, USAGE):
            raise
        except MicrotomeError as error:  # outside of a verb
            from microtome.terminal import complain

            complain(error)
            raise typer.Exit(FAULT) from error
        except BaseException as error:  # SystemExit too: it is that of somebody else's code
            raise typer.Exit(crash.ended_by(error)) from error

    def main(self, *args: Any, **more: Any) -> Any:
        """Parse and run; typer itself ends with 1 where a pipe is closed, or nobody answers."""
        try:
            return super().main(*args, **more)
        except SystemExit as error:
            cause = error.__context__
            if error.code != 1 or isinstance(cause, typer.Exit):
                raise
            code = crash.ended_by(error)
        except BaseException as error:
            code = crash.ended_by(error)
        sys.exit(code)


app = typer.Typer(
    name="microtome",
    cls=Guarded,
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
