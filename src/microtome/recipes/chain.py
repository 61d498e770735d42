"""A chain of methods: checked before it runs, and what it did is kept with the network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from microtome.errors import OptionError
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.memory import memory_at_hand
from microtome.methods.base import Batches, Method
from microtome.types import Capabilities

Calibration = TypeVar("Calibration", bound=Batches)


@dataclass(frozen=True)
class Data(Generic[Calibration]):
    """What methods may read.

    Attributes:
        calibration: a few images.
        training: many, for methods that train; None where there are none.
        tuning: images of other patients, for early stopping.
    """

    calibration: Calibration
    training: Batches | None = None
    tuning: Batches | None = None


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

    @property
    def trains(self) -> bool:
        """Whether it needs training data."""
        return any(_trains(method) for method in self.methods)

    def describe(self) -> list[dict[str, Any]]:
        """Return the methods with their settings, as plain values."""
        return [{"method": type(method).__name__, **_settings(method)} for method in self.methods]


def run(
    chosen: Recipe,
    network: Network,
    data: Data[Any] | Batches,
    *,
    checkpoints: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
    watch: Callable[[int, int, float], None] | None = None,
) -> Network:
    """Run the methods one after the other.

    Args:
        chosen: the recipe.
        network: the parent; it is not changed.
        data: calibration input, or all that methods may read.
        checkpoints: folder for the network after each method; a method whose result lies there is not run again, and
            training that was interrupted goes on.
        announce: called with each method's name before it runs.
        watch: called after each step of training with step, number of steps and loss.

    Raises:
        OptionError: the network is already in a state that a method refuses, or there is nothing to train on.
    """
    data = data if isinstance(data, Data) else Data(data)
    parent = network
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
            network = pt2.load(checkpoint)
            continue
        announce(name)
        start = time.perf_counter()
        before = network.history
        ready, batches = method, data.calibration
        if _trains(method):
            if data.training is None:
                raise OptionError(f"the recipe {chosen.name} trains, but there are no training images.")
            half_done = None if checkpoint is None else checkpoint.with_suffix(".training")
            told = {"teacher": parent, "tuning": data.tuning, "checkpoint": half_done, "watch": watch}
            ready, batches = replace(method, **told), data.training  # type: ignore[type-var]
        with memory_at_hand():
            network = ready(network, batches)
        record = {"method": name, **_settings(method), "seconds": round(time.perf_counter() - start, 3)}
        for found in network.history[len(before) :]:  # what the method itself found worth keeping
            record.update(found)
        network = replace(network, history=(*before, record))
        if checkpoint is not None:
            scratch = checkpoint.with_suffix(".tmp")
            pt2.save(network, scratch)
            scratch.rename(checkpoint)
    return network


def _trains(method: Method) -> bool:
    return bool(getattr(method, "trains", False))


def _settings(method: Any) -> dict[str, Any]:
    """Return a method's fields as plain values that JSON can hold."""
    fields = [f for f in dataclasses.fields(method) if f.metadata.get("setting", True)]
    return {f.name: _plain(getattr(method, f.name)) for f in fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Capabilities):
        return value.target
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return _settings(value) if dataclasses.is_dataclass(value) else value
