"""Benchmarks and examples import nothing that the project does not have, at their top or within functions."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_imported_is_there(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    missing = []
    for node in imports:
        if not (node.module or "").startswith("microtome"):
            continue
        for alias in node.names:
            try:
                if not hasattr(importlib.import_module(str(node.module)), alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
            except ModuleNotFoundError as error:
                missing.append(f"line {node.lineno}: {alias.name} ({error})")
    assert not missing
