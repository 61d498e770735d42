"""What is found by its name: in a list of the project, or in another package that is named outright."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from microtome.errors import OptionError
from microtome.records import nearest


def find(name: str, known: Mapping[str, str], what: str, *, form: str, required: Iterable[str] = ()) -> Any:
    """Return what a name stands for. Another package's code is imported only if it is named outright.

    Args:
        name: a key of `known`, or a place.
        known: name → place. A place is `package.module`, or `package.module:attribute`.
        what: it is, for errors, such as `target`.
        form: how another package's is written, such as `their_pkg.module`; what lacks its dot or colon is only a name.
        required: attributes that it must have.

    Raises:
        OptionError: there is nothing of that name, it cannot be imported, or it is something else.
    """
    mark = ":" if ":" in form else "."
    hint = f"Choose one of {', '.join(known)}; or name one of another package: {form}."
    if name not in known and mark not in name:
        raise OptionError(f"there is no {what} {name!r}{nearest(name, known)}.", hint)
    place, _, attribute = known.get(name, name).partition(":")
    try:
        found = importlib.import_module(place)
        found = getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"the {what} {name} cannot be imported: {error}.", hint) from error
    missing = [wanted for wanted in required if not hasattr(found, wanted)]
    if missing:
        raise OptionError(f"{name} is no {what}: it has no {', '.join(missing)}.", hint)
    return found
