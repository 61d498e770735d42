"""Recipes from their files, with what was set beside."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from microtome.errors import OptionError
from microtome.methods import METHODS
from microtome.recipes.chain import Recipe
from microtome.recipes.files import load
from microtome.recipes.tables import from_table, method_class
from microtome.records import nearest


def read(
    source: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    where_there: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Recipe:
    """Read a recipe.

    Args:
        source: a name of `files.names`, or a TOML file.
        settings: values over the file's, by `method.field`; `method#2.field` is that of the second method of that name,
            and `method.field.field` lies in a table.
        where_there: likewise, but set only where the recipe has the method.
        seed: of the methods that draw at random, unless something else says it.

    Raises:
        OptionError: there is no such recipe; or a method, a field or a value that makes no sense; or an order that
            makes none.
    """
    written = load(source)
    tables = copy.deepcopy(written.tables)
    for key, value in (where_there or {}).items():
        _set(tables, key, value)
    for key, value in (settings or {}).items():
        if not _set(tables, key, value):
            held = list(dict.fromkeys(table["method"] for outer in tables for table in _all(outer)))
            raise OptionError(
                f"the recipe {written.name} has nothing that is called {key!r}{nearest(key.partition('.')[0], held)}.",
                f"Write METHOD.FIELD; its methods: {', '.join(held) or 'none'}.",
            )
    methods = []
    for table in tables:
        for own in _all(table) if seed is not None else ():
            if "seed" in _keys(own, written.where):
                own.setdefault("seed", seed)
        methods.append(from_table(table, written.where))
    return Recipe(written.name, tuple(methods), written.description, written.coded)


def holds(source: str | Path, key: str) -> bool:
    """Whether a recipe has the method that `method.field` names."""
    return _set(copy.deepcopy(load(source).tables), key, None)


def from_history(name: str, history: Iterable[Mapping[str, Any]]) -> Recipe:
    """Return the recipe that a network's history tells of.

    Raises:
        OptionError: a method is not known here, or has other fields by now.
    """
    titles = {home.partition(":")[2]: known for known, home in METHODS.items()}
    tables = [{**record, "method": titles.get(record["method"], record["method"])} for record in history]
    return Recipe(name, tuple(from_table({k: t[k] for k in t.keys() & _keys(t, name)}, name) for t in tables))


def _keys(table: Mapping[str, Any], where: str) -> set[str]:
    """Return what a table of a method may hold."""
    kind = method_class(table["method"], where)
    return {"method", *(field.name for field in dataclasses.fields(kind))}  # type: ignore[arg-type]


def _named(tables: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield tables under the names that stand for them: `name`, and `name#1`, `name#2`, …"""
    seen = Counter[str]()
    for table in (table for outer in tables for table in _all(outer)):
        name = table["method"]
        seen[name] += 1
        yield name, table
        yield f"{name}#{seen[name]}", table


def _all(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a method's table, and those of the methods that it holds."""
    yield table
    inner = table.get("methods")
    for one in inner if isinstance(inner, list) else ():
        if isinstance(one, dict) and isinstance(one.get("method"), str):
            yield from _all(one)


def _set(tables: Iterable[dict[str, Any]], key: str, value: Any) -> bool:
    """Set a field in each table that the key names; return whether there is one."""
    found = False
    for name, table in _named(tables):
        if key.startswith(f"{name}."):
            *path, last = key.removeprefix(f"{name}.").split(".")
            inner = table
            for part in path:
                if not isinstance(inner.get(part), dict):
                    inner[part] = {}
                inner = inner[part]
            inner[last] = value
            found = True
    return found
