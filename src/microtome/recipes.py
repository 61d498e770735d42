"""Recipes: named chains of methods. A recipe is checked before it runs, and what it did is kept with the network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microtome.core.observers import OBSERVERS
from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.methods.base import Batches, Method
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import Capabilities

RECIPES = {
    "int8": "fold batch norms, 8-bit weights and activations by calibration, correct biases",
    "f32": "no compression: the network as it is, for comparison",
}


@dataclass(frozen=True)
class Recipe:
    """A named chain of methods."""

    name: str
    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        """Check that each method finds the state that it needs."""
        state: frozenset[str] = frozenset()
        for method in self.methods:
            missing, unwanted = method.needs - state, method.refuses & state
            if missing or unwanted:
                raise OptionError(
                    f"the recipe {self.name} cannot run {type(method).__name__} "
                    f"{'before ' + ', '.join(sorted(missing)) if missing else 'after ' + ', '.join(sorted(unwanted))}.",
                    "Reorder its methods.",
                )
            state |= method.leaves

    def describe(self) -> list[dict[str, Any]]:
        """Return the methods with their settings, as plain values."""
        return [{"method": type(method).__name__, **_settings(method)} for method in self.methods]


def recipe(
    name: str,
    capabilities: Capabilities,
    *,
    observer: str = "mse",
    percentile: float = 99.99,
    skip: frozenset[str] = frozenset(),
) -> Recipe:
    """Build a recipe by name for a target.

    Args:
        name: a key of RECIPES.
        capabilities: of the target.
        observer: how activation ranges are found.
        percentile: for the observer of that name.
        skip: layers that stay in float.

    Raises:
        OptionError: an unknown name or observer.
    """
    if name not in RECIPES:
        raise OptionError(f"there is no recipe {name!r}.", f"Choose one of {', '.join(RECIPES)}.")
    if observer not in OBSERVERS:
        raise OptionError(f"there is no observer {observer!r}.", f"Choose one of {', '.join(OBSERVERS)}.")
    if not 50 < percentile <= 100:
        raise OptionError(f"--percentile must lie above 50 and up to 100, not {percentile}.")
    if name == "f32":
        return Recipe(name, ())
    quantize = Quantize(capabilities, observer=observer, percentile=percentile, skip=skip)
    return Recipe(name, (FoldBatchNorm(), quantize, CorrectBias()))


def run(
    chosen: Recipe,
    network: Network,
    batches: Batches,
    *,
    checkpoints: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Network:
    """Run the methods one after the other.

    Args:
        chosen: the recipe.
        network: the parent; it is not changed.
        batches: calibration input.
        checkpoints: folder for the network after each method; a method whose result lies there is not run again.
        announce: called with each method's name before it runs.

    Raises:
        OptionError: the network is already in a state that the recipe's methods refuse.
    """
    for position, method in enumerate(chosen.methods):
        name = type(method).__name__
        unwanted = method.refuses & network.state
        if unwanted:
            raise OptionError(
                f"the network is already {', '.join(sorted(unwanted))}: {name} cannot run on it.",
                "Start from the uncompressed network.",
            )
        if method.leaves <= network.state and not method.refuses:
            continue
        checkpoint = checkpoints / f"{position}-{name}.pt2" if checkpoints is not None else None
        if checkpoint is not None and checkpoint.exists():
            network = Network.load(checkpoint)
            continue
        announce(name)
        start = time.perf_counter()
        network = method(network, batches)
        record = {"method": name, **_settings(method), "seconds": round(time.perf_counter() - start, 3)}
        network = replace(network, history=(*network.history, record))
        if checkpoint is not None:
            scratch = checkpoint.with_suffix(".tmp")
            network.save(scratch)
            scratch.rename(checkpoint)
    return network


def _settings(method: Method) -> dict[str, Any]:
    """Return a method's fields as plain values that JSON can hold."""
    return {f.name: _plain(getattr(method, f.name)) for f in dataclasses.fields(method)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Capabilities):
        return value.target
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
