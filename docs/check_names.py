"""Check that what the documentation names exists: paths, Python names, make targets, commands, options, their values.

`python docs/check_names.py [FILE …]` reads README.md, CONTRIBUTING.md and docs/*.md, prints `FILE:LINE: what is wrong`
for each name that nothing in the project has, and exits with 1 if there is any. Names of others, and of files that a
user would have, are in OTHERS and in PLACEHOLDER.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project_names import PACKAGE, Project

ROOT = Path(__file__).parents[1]

PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\bmy_|\byour_|\bpatient\b|[*…]|X\.")
"""What stands for something of the reader's."""
OTHERS = frozenset(
    {
        *("MONAI", "SlidingWindowInferer", "BILINEAR", "brgconv_avx512_amx_I8", "einsum"),
        *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "Gemm", "MatMulIntegerToFloat", "QLinearConv"),
        *("QLinearMatMul", "channel_names", "imgs", "labelsTs", "segmentations", "coordX", "coordY", "coordZ"),
    }
)
"""Operators, functions, kernels and folders of other projects."""
OTHER_COMMANDS = frozenset({"pip", "python", "git", "make", "apt-get"})

FENCE = re.compile(r"^( *)(```+)[ ]*([\w-]*)[^\n]*\n(.*?)^\1\2[ ]*$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)[^)]*\)")
DIRECTIVE = re.compile(r"^::: ([\w.]+)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
PATH = re.compile(r"(?<![\w./~-])\.{0,2}/?(?:[\w-][\w.-]*/)+(?:[\w-][\w.-]*)?|(?<![\w./-])[\w-]+\.(?:py|pyi)\b")
DOTTED = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
ELISION = re.compile(r",\s*\.\.\.(?=\s*[}\])])")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Code:
    """A piece of code in a page: its first line's number, its language (none in running text), and the text."""

    line: int
    language: str | None
    text: str


def pieces(page: str) -> Iterator[Code]:
    """Yield what a page writes in backticks and in code blocks."""
    for block in FENCE.finditer(page):
        yield Code(page.count("\n", 0, block.start(4)) + 1, block[3], block[4])
    prose = FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), page)
    for code in INLINE.finditer(prose):
        if "\n\n" not in code[1]:
            yield Code(prose.count("\n", 0, code.start()) + 1, None, " ".join(code[1].split()))


def check(page: str, project: Project, folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of each name in a page that the project does not have.

    Args:
        page: Markdown.
        project: what there is.
        folder: of the page; links start there.
    """
    for link in LINK.finditer(FENCE.sub(lambda block: "\n" * block[0].count("\n"), page)):
        if not (folder / link[1]).exists():
            yield page.count("\n", 0, link.start()) + 1, f"there is no file {link[1]}"
    for directive in DIRECTIVE.finditer(page):
        if project.find(directive[1]) is None:
            yield page.count("\n", 0, directive.start()) + 1, f"there is no {directive[1]}"
    for code in pieces(page):
        if code.language is None:
            yield from ((code.line, fault) for fault in _inline(code.text, project))
        elif code.language in ("sh", "bash"):
            yield from _shell(code, project)
        elif code.language in ("python", "py"):
            yield from _python(code, project)
        elif code.language in ("text", ""):
            yield from _each_line(code, project)


def _inline(text: str, project: Project) -> Iterator[str]:
    words = text.split()
    if words[0] == "make" and len(words) == 2 and words[1] not in project.targets:
        yield f"there is no make target {words[1]}"
    yield from _paths(text, project)
    if words[0] == PACKAGE or (OPTION.search(text) and words[0] not in OTHER_COMMANDS):
        yield from _command(words, project)
    elif IDENTIFIER.fullmatch(text):
        if text not in project.words | project.files | OTHERS and not PLACEHOLDER.search(text):
            yield f"nothing is called {text}"
    elif DOTTED.fullmatch(text.removesuffix("()")) and not PATH.fullmatch(text):
        yield from _dotted(text.removesuffix("()"), project)
    elif re.fullmatch(r"[\w.]+\(.*\)", text):
        yield from _call(text, project)


def _dotted(name: str, project: Project) -> Iterator[str]:
    first = name.split(".", maxsplit=1)[0]
    if first == PACKAGE:
        if project.find(name) is None:
            yield f"there is no {name}"
    elif first in project.rooms or first in project.modules or first in project.definitions:
        a_file = name in project.files or f'"{name}"' in project.text
        if not a_file and not project.find_short(name) and not _all_words(name, project):
            yield f"there is no {name}"


def _all_words(name: str, project: Project) -> bool:
    """Whether a dotted name is a path of fields in a file: lower case, and no room of that name."""
    parts = name.split(".")
    return parts[0] not in project.rooms and parts[0] not in project.definitions and set(parts) <= project.words


def _call(text: str, project: Project) -> Iterator[str]:
    try:
        tree = ast.parse(text.replace("…", "..."), mode="eval").body
    except SyntaxError:
        return
    if isinstance(tree, ast.Call):
        name = ast.unparse(tree.func)
        found = [project.find(name)] if name.startswith(f"{PACKAGE}.") else project.find_short(name)
        found = [one for one in found if one is not None]
        if not found and name.split(".")[-1] not in project.words | OTHERS:
            yield f"there is no {name}"
        elif found and not any(_takes(one, tree) for one in found):
            yield _not_taken(name, tree)


def _takes(function: Any, call: ast.Call) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    open_end = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return open_end or {k.arg for k in call.keywords if k.arg} <= {parameter.name for parameter in parameters}


def _paths(text: str, project: Project, *, ours: bool = False) -> Iterator[str]:
    """Check what looks like a path in the project; with `ours`, a folder's name alone as well."""
    for found in PATH.finditer(text):
        path = found[0].rstrip(".").removeprefix("./")
        if PLACEHOLDER.search(path) or path.startswith("..") or path.rstrip("/") in project.files:
            continue
        if (project.root / path).exists() or (project.root / "src" / PACKAGE / path).exists():
            continue
        first, _, rest = path.partition("/")
        if path.endswith(".py") or ours or (rest and (first in project.rooms or (project.root / first).is_dir())):
            yield f"there is no file {path}"


def _command(words: list[str], project: Project) -> Iterator[str]:
    """Check `microtome COMMAND … --option value`, or a part of it."""
    name = words[1] if words[0] == PACKAGE and len(words) > 1 and not words[1].startswith("-") else ""
    if name and name not in project.commands and not PLACEHOLDER.search(name):
        yield f"microtome has no command {name}"
    options = project.commands.get(name, project.commands[""])
    for word, value in zip(words, [*words[1:], "-"], strict=True):
        option, _, given = word.partition("=")
        if OPTION.fullmatch(option):
            if option not in options:
                yield f"{option} is no option of {f'{PACKAGE} {name}' if name else PACKAGE}"
            wanted = given or value
            choices = project.choices.get(option)
            if choices and IDENTIFIER.fullmatch(wanted) and wanted not in choices and not PLACEHOLDER.search(wanted):
                yield f"{option} takes no {wanted}"


def _shell(code: Code, project: Project) -> Iterator[tuple[int, str]]:
    yield from _each_line(code, project)
    for number, line in _joined(code.text):
        words = shlex.split(line, comments=True)
        if words and words[0] == PACKAGE:
            yield from ((code.line + number, fault) for fault in _command(words, project))
        if len(words) > 1 and words[0] == "make" and words[1] not in project.targets:
            yield code.line + number, f"there is no make target {words[1]}"


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a shell script with their numbers, those that go on behind a backslash as one."""
    start, held = 0, ""
    for number, line in enumerate(text.splitlines()):
        start = start if held else number
        held += line.rstrip("\\").strip() + " "
        if not line.endswith("\\"):
            yield start, held.strip()
            held = ""


def _each_line(code: Code, project: Project) -> Iterator[tuple[int, str]]:
    a_drawing_of_the_house = f"src/{PACKAGE}/" in code.text
    for number, line in enumerate(code.text.splitlines()):
        faults = _paths(line, project, ours=a_drawing_of_the_house)
        yield from ((code.line + number, fault) for fault in faults)


def _python(code: Code, project: Project) -> Iterator[tuple[int, str]]:
    """Check what a block imports of the package, and the keywords of what it calls of it."""
    try:
        tree = ast.parse(ELISION.sub("", textwrap.dedent(code.text)))
    except SyntaxError as error:
        yield code.line + (error.lineno or 1) - 1, "this is no Python"
        return
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        named = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            imported = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            known |= imported
            named = list(imported.values())
        elif isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] == PACKAGE:
            named = [ast.unparse(node)]
        yield from (
            (code.line + node.lineno - 1, f"there is no {name}") for name in named if project.find(name) is None
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = known.get(called, called)
            function = project.find(name) if name.startswith(f"{PACKAGE}.") else None
            if function is not None and not _takes(function, node):
                yield code.line + node.lineno - 1, _not_taken(called, node)


def _not_taken(name: str, call: ast.Call) -> str:
    return f"{name} does not take all of: {', '.join(k.arg for k in call.keywords if k.arg)}"


def main(arguments: list[str]) -> int:
    """Check the pages named, or all of them, and return the exit code."""
    sys.path.insert(0, str(ROOT / "src"))
    pages = [Path(name) for name in arguments] or [
        ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))
    ]  # fmt: skip
    project, faults = Project(ROOT), 0
    for path in pages:
        for line, fault in sorted(set(check(path.read_text(), project, path.parent))):
            print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {fault}")
            faults += 1
    print(f"{len(pages)} pages, {faults} names that do not exist")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
