"""Recipes: named chains of methods, each a file. A recipe is checked before it runs, and what it did is kept.

The files and their list (`recipes.files`) are read without torch; what runs them is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microtome.recipes.chain import Recipe, run
    from microtome.recipes.reader import from_history, read

__all__ = ["Recipe", "from_history", "read", "run"]

_HOMES = {"Recipe": "chain", "run": "chain", "from_history": "reader", "read": "reader"}


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'microtome.recipes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"microtome.recipes.{_HOMES[name]}"), name)
