"""The tests themselves: none returns before its end, and each checks something whatever path it takes."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef
CHECKS = frozenset({"raises", "warns", "fail"})
"""Functions of pytest that fail a test; those called `assert_…` do as well."""


@cache
def functions() -> tuple[tuple[str, Function], ...]:
    """Every function below tests/, with the file and the line where it stands."""
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                found.append((f"{path.relative_to(TESTS)}:{node.lineno}", node))
    return tuple(found)


@cache
def helpers() -> frozenset[str]:
    """The names of functions of the tests that check something, by themselves or through another."""
    found: frozenset[str] = frozenset()
    while True:
        more = {node.name for _, node in functions() if always_checks(node.body, found)}
        if found == more:
            return found
        found = frozenset(more)


def of_its_own(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in a function, but not in the functions and classes defined within."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield child
            yield from of_its_own(child)


def is_check(node: ast.AST, known: frozenset[str]) -> bool:
    """Whether a node can fail the test that runs it."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rsplit(".", 1)[-1]
    return name in CHECKS or name in known or name.startswith("assert_")


def always_checks(body: list[ast.stmt], known: frozenset[str]) -> bool:
    """Whether statements check something whatever their conditions say; a loop is taken to run at least once."""
    for statement in body:
        inner: list[list[ast.stmt]]
        match statement:
            case ast.If():
                if always_checks(statement.body, known) and always_checks(statement.orelse, known):
                    return True
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.For() | ast.While():
                here, inner = [], [statement.body]
            case ast.With():
                here, inner = [item.context_expr for item in statement.items], [statement.body]
            case ast.Try():
                here, inner = [], [statement.body, statement.orelse, statement.finalbody]
            case _:
                here, inner = [statement], []
        if any(is_check(node, known) for part in here for node in (part, *of_its_own(part))):
            return True
        if any(always_checks(part, known) for part in inner):
            return True
    return False


def faults(function: Function, known: frozenset[str] = frozenset()) -> list[str]:
    """Say what lets a test pass without a check."""
    found = ["returns"] if any(isinstance(node, ast.Return) for node in of_its_own(function)) else []
    return found if always_checks(function.body, known) else [*found, "may check nothing"]


def test_every_test_checks_something_and_none_returns():
    found = {where: faults(node, helpers()) for where, node in functions() if node.name.startswith("test_")}
    assert len(found) > 1000
    assert {where: what for where, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("assert x", []),
        ("with pytest.raises(ValueError):\n    x()", []),
        ("with warns(UserWarning) as w:\n    x()", []),
        ("np.testing.assert_allclose(x, y)", []),
        ("for x in y:\n    assert x", []),
        ("if x:\n    assert y\nelse:\n    assert z", []),
        ("if x:\n    pytest.skip('why')\nassert y", []),
        ("try:\n    x()\nfinally:\n    assert y", []),
        ("same(x, y)", []),
        ("def inner():\n    return 3\nassert inner()", []),
        ("if x:\n    return\nassert y", ["returns"]),
        ("return same(x, y)", ["returns"]),
        ("x()", ["may check nothing"]),
        ("if x:\n    assert y", ["may check nothing"]),
        ("for x in y:\n    if x:\n        assert x", ["may check nothing"]),
        ("if x:\n    assert y\nelse:\n    z()", ["may check nothing"]),
        ("def inner():\n    assert x", ["may check nothing"]),
        ("try:\n    x()\nexcept ValueError:\n    assert y", ["may check nothing"]),
        ("return", ["returns", "may check nothing"]),
    ],
)
def test_a_test_that_may_pass_unchecked_is_found(body: str, expected: list[str]):
    function = ast.parse(f"def test_it():\n{textwrap.indent(body, '    ')}").body[0]
    assert isinstance(function, Function)
    assert faults(function, frozenset({"same"})) == expected
