"""One method as a table of a recipe file, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from microtome import records
from microtome.core.formats import Format, format_of, format_record
from microtome.errors import OptionError
from microtome.methods import METHODS
from microtome.methods.base import Method
from microtome.plugins import find


def method_class(name: str, where: str) -> type[Method]:
    """Return the class that a name stands for: a key of `METHODS`, or `package.module:Class` of any package.

    Args:
        name: of the method.
        where: it is written, for errors.

    Raises:
        OptionError: there is no such method.
    """
    try:
        kind = find(name, METHODS, "method", form="their_pkg.module:TheirMethod")
    except OptionError as error:
        raise OptionError(f"{where}: {error.problem}", error.hint) from error
    if not (isinstance(kind, type) and issubclass(kind, Method) and dataclasses.is_dataclass(kind)):
        raise OptionError(f"{where}: {name} is no method.", "A method is a frozen dataclass and a methods.base.Method.")
    return kind


def from_table(table: Mapping[str, Any], where: str) -> Method:
    """Return the method that a table describes.

    Raises:
        OptionError: there is no such method, or it has no such field, or a value is not what the field takes.
    """
    name = table["method"]
    values = {key: value for key, value in table.items() if key != "method"}
    readers: dict[type, Any] = {Format: format_of, Method: lambda inner: _nested(inner, where)}
    return records.read(method_class(name, where), values, f"{where}: {name}", readers)


def to_table(method: Method) -> dict[str, Any]:
    """Return a method as a table, all of its fields as plain values: what `from_table` takes."""
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    fields: dict[str, Any] = records.plain(values, {Format: format_record, Method: to_table})
    return {"method": name_of(type(method)), **fields}


def _nested(table: Any, where: str) -> Method:
    """Return a method that stands in a field of another."""
    if not isinstance(table, Mapping) or not isinstance(table.get("method"), str):
        raise ValueError('each method is a table, and its first line `method = "NAME"`')
    return from_table(table, where)


def name_of(kind: type[Method]) -> str:
    """Return the name that stands for a class."""
    written = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, home in METHODS.items() if home == written), written)


def title(kind: type[Method]) -> str:
    """Return what a class is called in a network's history, which its name can be told from."""
    return kind.__name__ if name_of(kind) in METHODS else name_of(kind)
