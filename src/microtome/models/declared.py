"""What a MONAI bundle says of itself, as data: references followed, no expression run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Declared:
    """What a bundle says of itself: its config as data, and the metadata of its first input and output."""

    config: Mapping[str, Any]
    image: Mapping[str, Any]
    prediction: Mapping[str, Any]

    def plain(self, value: Any, depth: int = 8) -> Any:
        """Replace references to other entries by their values, and literal expressions by what they mean."""
        if depth == 0:
            return value
        if isinstance(value, dict):
            return {key: self.plain(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, depth - 1) for item in value]
        if not isinstance(value, str):
            return value
        reference = re.fullmatch(r"\$?@([\w:#]+)", value)
        if reference:
            found: Any = self.config
            for part in re.split(r"::|#", reference[1]):
                if isinstance(found, list) and part.isdigit() and int(part) < len(found):
                    found = found[int(part)]
                elif isinstance(found, Mapping) and part in found:
                    found = found[part]
                else:
                    return value
            return self.plain(found, depth - 1)
        if value.startswith("$"):
            try:
                return ast.literal_eval(value[1:])
            except (ValueError, SyntaxError):
                return value
        return value

    def entry(self, *names: str) -> Any:
        """Return the first entry there is, from the config or its `validate` part; None if there is none."""
        validate = self.config.get("validate")
        for part in (self.config, validate if isinstance(validate, Mapping) else {}):
            for name in names:
                if part.get(name):
                    return self.plain(part[name])
        return None

    def transforms(self, *names: str) -> list[tuple[str, Settings]] | None:
        """Return (kind, settings) of the transforms of the first entry there is; None if that is no plain list."""
        content = self.entry(*names)
        if isinstance(content, Mapping):
            content = content.get("transforms", [])
        if not isinstance(content, list):
            return None
        items = [item if isinstance(item, Mapping) else {"_target_": str(item)} for item in content]
        return [(kind_of(item), item) for item in items if not item.get("_disabled_")]


@dataclass
class Draft:
    """The fields of the Pipeline so far."""

    dims: int
    channels: int
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    intensities: list[str] = field(default_factory=list)
    zero: float | None = 0.0  # what in the image's own units is now 0; None if that depends on the image


def kind_of(item: Settings) -> str:
    """Return the name of a transform or inferer without module and without the suffix of its dictionary twin."""
    name = name_of(item)
    if name.endswith(("Pad", "Foreground")):  # no suffix: the words end so
        return name
    return re.sub(r"(?<=[a-z])(Dict|D|d)$", "", name)


def name_of(item: Settings) -> str:
    """Return the name of a transform or inferer as the bundle has it, without its module."""
    return str(item.get("_target_", "?")).rpartition(".")[2]


def per_axis(value: Any, dims: int) -> list[float] | None:
    """Return one positive number per axis; None if that is not what is given."""
    values = [value] * dims if isinstance(value, int | float) else value
    fits = isinstance(values, list | tuple) and len(values) == dims
    return list(values) if fits and all(isinstance(n, int | float) and n > 0 for n in values) else None


def multiple_of(size: object) -> int:
    """Return what a size must be a multiple of by the metadata: 8 for `8*n`, 32 for powers of two, 1 for `*` and 96."""
    text = str(size).replace(" ", "")
    if "2**" in text:
        return 32
    factor = re.fullmatch(r"(\d+)\*n|n\*(\d+)", text)
    return int(factor[1] or factor[2]) if factor else 1


def is_data(value: Any) -> bool:
    """Whether a value is known, not an expression that would have to be run."""
    if isinstance(value, tuple):
        return all(is_data(item) for item in value)
    return value is not None and not (isinstance(value, str) and value.startswith(("$", "@", "%")))
