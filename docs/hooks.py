"""Fills the command-line page from the command line itself, so that the two cannot differ."""

from __future__ import annotations

import re
from typing import Any

from typer.main import get_command

MARK = "<!-- commands -->"
MARKUP = re.compile(r"\[/?[a-z ]*\]")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands where the page asks for them."""
    if MARK not in markdown:
        return markdown
    from microtome.cli import app

    group: Any = get_command(app)
    return markdown.replace(MARK, "\n".join(_section(name, command) for name, command in group.commands.items()))


def _section(name: str, command: Any) -> str:
    arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
    required = [f"{p.opts[-1]} {p.name.upper()}" for p in command.params if _is_option(p) and p.required]
    usage = " ".join(("microtome", name, *arguments, *required, "[OPTIONS]"))
    lines = [f"## microtome {name}", "", str(command.help), "", "```text", usage, "```", ""]
    if command.epilog:
        lines += ["```sh", command.epilog.removeprefix("Example: "), "```", ""]
    lines += ["| argument or option | default | |", "|---|---|---|"]
    lines += [_row(parameter) for parameter in command.params if parameter.name != "help"]
    return "\n".join([*lines, ""])


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _row(parameter: Any) -> str:
    names = [f"`{name}`" for name in parameter.opts] if _is_option(parameter) else [f"`{parameter.name.upper()}`"]
    default = parameter.default
    shown = "" if default is None or default is False or default == () else f"`{default}`"
    shown = "required" if parameter.required else shown
    text = MARKUP.sub("", parameter.help or "").replace("|", "\\|")
    return f"| {', '.join(names)} | {shown} | {text} |"
