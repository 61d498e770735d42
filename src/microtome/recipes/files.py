"""Recipe files: which there are, and what is written in them.

description = "in one line"
coded = true           # entropy-code the package; false if left out

[[method]]
method = "quantize"  # a key of `methods.METHODS`, or "their_pkg.module:TheirMethod"
weight_bits = 4      # a field of the method; what is left out is at its default
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import OptionError
from microtome.records import nearest

FOLDER = Path(__file__).parent
SUFFIX = ".toml"


@dataclass(frozen=True)
class Written:
    """What a recipe file says.

    Attributes:
        name: of the recipe: the file's, without its ending.
        where: the file, for errors.
        description: one line.
        tables: one for each method, with its name under `method`.
        coded: whether packages are entropy-coded.
    """

    name: str
    where: str
    description: str
    tables: tuple[dict[str, Any], ...]
    coded: bool = False


def names() -> tuple[str, ...]:
    """Return the names of the recipes that come with microtome."""
    return tuple(sorted(file.stem for file in FOLDER.glob(f"*{SUFFIX}")))


def find(source: str | Path, *, also: Iterable[str] = ()) -> Path:
    """Return the file of a recipe, given its name or the file itself.

    Args:
        source: a name of `names`, or a path.
        also: what else the caller knows, for the error.

    Raises:
        OptionError: there is none.
    """
    if str(source) in names():
        return FOLDER / f"{source}{SUFFIX}"
    path = Path(source)
    if path.is_file():
        return path
    known = (*names(), *also)
    raise OptionError(
        f"there is no recipe {str(source)!r}{nearest(str(source), known)}.",
        f"Choose one of {', '.join(known)}; or give a file, such as mine{SUFFIX}.",
    )


def load(source: str | Path) -> Written:
    """Read a recipe file.

    Raises:
        OptionError: there is none, or it is no recipe.
    """
    path = find(source)
    where = path.name
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{where} is not TOML: {error}.", "`microtome recipes show int8` prints one.") from error
    tables, description = content.pop("method", []), content.pop("description", "")
    coded = content.pop("coded", False)
    if content:
        key = next(iter(content))
        raise OptionError(
            f"{where} has no {key!r}{nearest(key, ('description', 'coded', 'method'))}.",
            "A recipe has a description, `coded`, and a table [[method]] for each method.",
        )
    if not isinstance(description, str):
        raise OptionError(f"{where}: the description must be text, not {description!r}.", "Correct it.")
    if not isinstance(coded, bool):
        raise OptionError(f"{where}: coded must be true or false, not {coded!r}.", "Correct it.")
    named = isinstance(tables, list) and all(isinstance(t, dict) and isinstance(t.get("method"), str) for t in tables)
    if not named:
        raise OptionError(f"{where}: each [[method]] needs a name.", 'Write `method = "quantize"` as its first line.')
    return Written(path.stem, where, description, tuple(tables), coded)


def assignments(texts: Iterable[str], form: str = "METHOD.FIELD=VALUE") -> Mapping[str, Any]:
    """Read texts such as `quantize.weight_bits=4`. Values are written as in TOML; a bare word is a text.

    `form` is how they are written, for the error.

    Raises:
        OptionError: there is no `=`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"{text!r} sets nothing.", f"Write {form}.")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found
