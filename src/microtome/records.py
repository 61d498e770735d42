"""Frozen dataclasses from plain values, such as TOML and JSON hold, and back.

A value must have its field's type; what is no field is refused, with the nearest that is one. None is written `"none"`
(of a number also `"float"`, since a width of none is float), a tuple or a set as a list, a dataclass as a table.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from microtome.errors import OptionError

T = TypeVar("T")
Readers = Mapping[type, Callable[[Any], Any]]
"""For types of others: (a plain value) → the value, or ValueError."""

Writers = Mapping[type, Callable[[Any], Any]]
"""For types of others: (a value) → plain."""

NONE = "none"
NO_WIDTH = "float"


def read(kind: type[T], values: Mapping[str, Any], where: str, readers: Readers | None = None) -> T:
    """Make a dataclass from plain values.

    Args:
        kind: the dataclass.
        values: by field; fields with a default may be left out.
        where: of the values, for errors, such as `mine.toml: quantize`.
        readers: for types that are neither plain nor dataclasses.

    Raises:
        OptionError: an unknown or a missing field, a value of another type, or one that the dataclass refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise OptionError(f"{where} has no field {name!r}{nearest(name, fields)}.", f"Its fields: {known}.")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise OptionError(f"{where} needs a value for {name}.", f"It must be {in_words(hints[name])}.")
    made = {}
    for name, value in values.items():
        words = in_words(hints[name], none=f'"{NONE}"')
        try:
            made[name] = native(value, hints[name], f"{where}.{name}", readers or {})
        except ValueError as error:
            raise OptionError(f"{where}.{name}: {error}.", "Correct it.") from error
        if not fits(made[name], hints[name]):
            raise OptionError(f"{where}.{name} must be {words}, not {value!r}.", "Correct it.")
    try:
        return kind(**made)
    except OptionError as error:
        raise OptionError(f"{where}: {error.problem}", error.hint) from error


def native(value: Any, hint: Any, where: str = "", readers: Readers | None = None) -> Any:
    """Return a plain value as the annotated type has it, as far as it can be told: `fits` says whether it could.

    Raises:
        OptionError: a table is no such dataclass.
        ValueError: a reader refuses the value.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in arguments and _is_none(value, arguments):
            return None
        candidates = (native(value, one, where, readers) for one in arguments if one is not types.NoneType)
        return next((made for made in candidates if fits(made, hint)), value)
    if isinstance(value, list | tuple) and origin is tuple:
        kinds = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        if len(kinds) != len(value):
            return value
        return tuple(native(v, k, where, readers) for v, k in zip(value, kinds, strict=True))
    if isinstance(value, list | tuple | set) and origin is frozenset:
        return frozenset(native(v, arguments[0], where, readers) for v in value)
    if isinstance(value, Mapping) and origin is not None and issubclass(origin, Mapping):
        return {native(k, arguments[0]): native(v, arguments[1], f"{where}.{k}", readers) for k, v in value.items()}
    if readers and hint in readers:
        return value if isinstance(value, hint) else readers[hint](value)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(hint):
        return read(hint, value, where, readers)  # type: ignore[arg-type]
    return value


def plain(value: Any, writers: Writers | None = None) -> Any:
    """Return a value as JSON can hold it: a dataclass as a table, tuples and sets as lists."""
    for kind, write in (writers or {}).items():
        if isinstance(value, kind):
            return write(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v, writers) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v, writers) for v in value]
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name), writers) for field in dataclasses.fields(value)}
    return value


def fits(value: object, hint: Any) -> bool:
    """Whether a value has the annotated type; an int counts as float, a bool or NaN as no number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return len(kinds) == len(value) and all(fits(v, k) for v, k in zip(value, kinds, strict=True))
    if origin is frozenset:
        return isinstance(value, frozenset) and all(fits(v, arguments[0]) for v in value)
    if origin is not None and issubclass(origin, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in pairs)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def in_words(hint: Any, *, none: str = "null") -> str:
    """Say what a value of the annotated type is, and how None is written."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(argument, none=none) for argument in arguments)
    if origin is Literal:
        return ", ".join(repr(argument) for argument in arguments)
    if origin in (tuple, frozenset):
        kinds = dict.fromkeys(in_words(argument, none=none) for argument in arguments if argument is not Ellipsis)
        return f"a list of {' and '.join(_plural(kind) for kind in kinds)}"
    if origin is not None or dataclasses.is_dataclass(hint):
        return "a table"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: none}
    return words.get(hint) or f"a {hint.__name__}"


def _plural(kind: str) -> str:
    """Several of what `in_words` says."""
    for one, several in (("a list ", "lists "), ("a table", "tables")):
        if kind.startswith(one):
            return several + kind.removeprefix(one)
    return f"{kind}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to add to an error about an unknown name: the nearest known one, if one is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest known one is '{near[0]}'" if near else ""


def _is_none(value: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether None is meant, by value or by name; a literal of that name is itself."""
    if value is None or (value == NO_WIDTH and int in arguments):
        return True
    return value == NONE and not any(fits(value, one) for one in arguments if typing.get_origin(one) is Literal)
