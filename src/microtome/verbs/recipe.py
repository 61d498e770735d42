"""Which recipes a verb is asked to run: read and checked before any work is done."""

from __future__ import annotations

from typing import Any

from microtome.errors import OptionError
from microtome.recipes import Recipe, read
from microtome.recipes.files import find
from microtome.recipes.reader import holds
from microtome.verbs.options import AUTO, CompressOptions

# What `auto` tries, from the cheapest to the most expensive. Each changes one thing.
LADDER = ("minmax", "ranges", "int8", "equalized", "mixed", "reconstruct", "qat")
# What it tries where more is asked for than numbers alone can give: structure first.
CLIMB = ("prune+int8", "distill+int8", "shrink", "smallest")
# Options that stand for a field of some methods.
SHORTHANDS = {
    "weight_bits": ("quantize", "dynamic"),
    "activation_bits": ("quantize", "dynamic"),
    "skip": ("quantize", "dynamic"),
    "observer": ("quantize", "attention"),
}


def asked(options: CompressOptions) -> tuple[Recipe, ...]:
    """Return the recipe that the options name; with `auto` all that it may try.

    Shorthands go to the methods that a recipe has. What is set by name must be there; with `auto`, in some recipe.

    Raises:
        OptionError: there is no such recipe, or something in it, or set, makes no sense.
    """
    short = {
        f"{method}.{name}": getattr(options, name)
        for name, methods in SHORTHANDS.items()
        for method in methods
        if getattr(options, name) not in (None, ())
    }
    given: dict[str, Any] = dict(options.set)
    goals = {"faster_than": options.faster_than, "smaller_than": options.smaller_than}
    asked_for = {name: goal for name, goal in goals.items() if goal is not None}
    for name, goal in asked_for.items():
        if goal <= 1 or options.recipe != AUTO:
            option = name.replace("_", "-")
            raise OptionError(
                f"--{option} {goal:g} says what --recipe {AUTO} goes on for: a factor above 1.",
                f"Write --recipe {AUTO} --{option} 10.",
            )
    ladder = (*LADDER, *CLIMB) if asked_for else LADDER
    if options.recipe != AUTO:
        find(options.recipe, also=(AUTO,))
        return (read(options.recipe, given, where_there=short, seed=options.seed),)
    for key in given:
        if not any(holds(name, key) for name in ladder):
            raise OptionError(f"no recipe that auto tries has {key!r}.", f"It tries {', '.join(ladder)}.")
    return tuple(read(name, where_there=short | given, seed=options.seed) for name in ladder)
