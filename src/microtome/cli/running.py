"""Call a verb, print what it returned, and end with the right exit code."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer

from microtome.cli.app import FAULT
from microtome.crash import INTERRUPTED
from microtome.errors import MicrotomeError, MissingExtraError
from microtome.results import Result

Outcome = TypeVar("Outcome", bound=Mapping[str, Any])
INFERIOR = 1


def run_verb(verb: Callable[[Any], Outcome], quietly: bool) -> Outcome:
    """Call a verb; turn what a user can mend into one sentence and an exit code."""
    from microtome.progress import Silent
    from microtome.terminal import RichProgress, complain

    try:
        if quietly:
            with contextlib.redirect_stdout(sys.stderr):  # what a user's own code prints is no part of the result
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


def finish(result: Result, as_json: bool, out: Path) -> None:
    """Print a result, and end with 1 if the compressed network is inferior, with 2 if a target is left out."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=float) + "\n")
    else:
        from microtome.terminal import print_result

        print_result(result, out)
    if result.get("verdict", {}).get("non_inferior") is False:
        raise typer.Exit(INFERIOR)
    if result.get("failed_targets"):
        raise typer.Exit(FAULT)


def show(result: dict[str, Any], as_json: bool, table: str) -> None:
    """Print a result with the named function of `terminal`, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=float) + "\n")
        return
    from microtome import terminal

    getattr(terminal, table)(result)
