"""What the project has that a page may name: files, words, commands with their options, and what can be imported."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

PACKAGE = "microtome"
FOLDERS = ("src", "benchmarks", "examples", "docs", "tests")
"""Folders whose files may be called by their name alone."""
CODE = ("src", "benchmarks", "examples")
"""Folders whose words are the project's: names of functions, recipes, formats, and fields of its files."""


@dataclass(frozen=True)
class Project:
    """The project at `root`, whose package is on the path; each table is made when it is first asked for."""

    root: Path

    @cached_property
    def files(self) -> frozenset[str]:
        """The files of FOLDERS and their folders, as paths from the root, and by their names alone."""
        found = [
            path for source in FOLDERS for path in (self.root / source).rglob("*") if "__pycache__" not in path.parts
        ]
        return frozenset(path.relative_to(self.root).as_posix() for path in found) | {path.name for path in found}

    @cached_property
    def rooms(self) -> frozenset[str]:
        """The folders of the package."""
        return frozenset(path.parent.name for path in (self.root / "src" / PACKAGE).glob("*/__init__.py"))

    @cached_property
    def text(self) -> str:
        """All code, and the recipes."""
        paths = [path for folder in CODE for path in sorted((self.root / folder).rglob("*.py"))]
        return "\n".join(path.read_text() for path in [*paths, *sorted((self.root / "src").rglob("*.toml"))])

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word that occurs in code, also behind an underscore, and the recipes' names."""
        words = frozenset(re.findall(r"[A-Za-z_]\w*", self.text))
        words |= {path.stem for path in (self.root / "src").rglob("*.toml")}
        return words | {f"_{word}" for word in words}

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """The full names of the package's modules, by their last part."""
        found: dict[str, list[str]] = {}
        for path in sorted((self.root / "src").rglob("*.py")):
            parts = path.relative_to(self.root / "src").with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found.setdefault(parts[-1], []).append(".".join(parts))
        return found

    @cached_property
    def definitions(self) -> dict[str, list[str]]:
        """The modules that define a class or a function, by its name."""
        found: dict[str, list[str]] = {}
        for names in self.modules.values():
            for name in names:
                path = self.root / "src" / Path(*name.split("."))
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                for node in ast.parse(file.read_text()).body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef):
                        found.setdefault(node.name, []).append(name)
        return found

    @cached_property
    def targets(self) -> frozenset[str]:
        """The targets of the Makefile."""
        return frozenset(re.findall(r"^([a-z][\w-]*):", (self.root / "Makefile").read_text(), re.MULTILINE))

    @cached_property
    def commands(self) -> dict[str, frozenset[str]]:
        """The options of each command; those of all of them under the empty name."""
        from typer.main import get_command

        from microtome.cli import app

        group: Any = get_command(app)
        found = {name: _options(command) for name, command in group.commands.items()}
        return {**found, "": _options(group)}

    @cached_property
    def choices(self) -> dict[str, frozenset[str]]:
        """The values that an option takes, of those options that take a name."""
        from microtome.core.observers import OBSERVERS
        from microtome.medical.formats import FORMATS
        from microtome.recipes.files import names
        from microtome.runtimes import TARGETS

        return {
            "--recipe": frozenset(names()) | {"auto"},
            "--target": frozenset(TARGETS),
            "--observer": frozenset(OBSERVERS),
            "--format": frozenset(FORMATS),
        }

    def find(self, name: str) -> Any:
        """Return what a full dotted name stands for, or None."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found: Any = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                if not has(found, part):
                    return None
                found = getattr(found, part, found)
            return found
        return None

    def find_short(self, name: str) -> list[Any]:
        """Return what a name as in running text may stand for: `Class.field`, `room.module.name`, `module.name`."""
        first, *rest = name.split(".")
        starts = [f"{PACKAGE}.{first}"] if first in self.rooms else []
        starts += self.modules.get(first, []) + [f"{module}.{first}" for module in self.definitions.get(first, [])]
        found = (self.find(".".join((start, *rest))) for start in starts)
        return [one for one in found if one is not None]


def _options(command: Any) -> frozenset[str]:
    """The options of a command, and of the commands within it."""
    own = frozenset(option for p in command.params for option in (*p.opts, *p.secondary_opts)) | {"--help"}
    return own.union(*(_options(inner) for inner in getattr(command, "commands", {}).values()))


def has(owner: Any, name: str) -> bool:
    """Whether a module or a class has a name; a field without a default is one of its annotations."""
    return hasattr(owner, name) or any(name in getattr(c, "__annotations__", {}) for c in getattr(owner, "__mro__", ()))
