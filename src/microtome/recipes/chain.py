"""A chain of methods: checked before it runs, and what it did is kept with the network."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from microtome.errors import OptionError
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.malloc import memory_at_hand
from microtome.methods.base import EMPTY, Batches, Context, Method, Phase, State
from microtome.recipes.tables import title, to_table


@runtime_checkable
class Titled(Protocol):
    """Batches that show how far they are, under a title."""

    def titled(self, title: str) -> Batches:
        """Return the same under another title."""


@dataclass(frozen=True)
class Recipe:
    """A named chain of methods.

    Attributes:
        name: of the recipe.
        methods: in order.
        description: one line.
        coded: whether packages are entropy-coded: this changes no number.
    """

    name: str
    methods: tuple[Method, ...]
    description: str = ""
    coded: bool = False

    def __post_init__(self) -> None:
        """Check that each method finds the state that it needs."""
        state: State = frozenset()
        for method in self.methods:
            _check(method, state, f"the recipe {self.name} cannot run", "Reorder its methods.")
            state = method.after(state)

    @property
    def trains(self) -> bool:
        """Whether it needs training data."""
        return any(method.trains for method in self.methods)

    @property
    def structural(self) -> int:
        """How many methods come before the first that changes numbers."""
        numbers = (k for k, method in enumerate(self.methods) if method.phase is Phase.NUMBERS)
        return next(numbers, len(self.methods))

    def with_fields(self, **fields: Any) -> Recipe:
        """Return the same with other values in each method that has all of these fields."""
        methods = [
            replace(m, **fields) if fields.keys() <= {f.name for f in dataclasses.fields(m)} else m  # type: ignore[arg-type, type-var]
            for m in self.methods
        ]
        return replace(self, methods=tuple(methods))

    def describe(self) -> list[dict[str, Any]]:
        """Return the methods with their settings, as plain values."""
        return [to_table(method) for method in self.methods]


def run(
    chosen: Recipe,
    network: Network,
    context: Context = EMPTY,
    *,
    checkpoints: Path | None = None,
    done: int = 0,
    until: int | None = None,
) -> Network:
    """Run the methods one after the other.

    Args:
        chosen: the recipe.
        network: the parent; it is not changed.
        context: what methods may read. Where it names no teacher, that is `network`.
        checkpoints: folder for the network after each method; a method whose result lies there is not run again, and
            training that was interrupted goes on.
        done: so many of the methods have run on `network` already.
        until: run the methods before this one; None runs all.

    Raises:
        OptionError: the network is in a state in which a method makes no sense, or there is nothing to train on.
    """
    if chosen.trains and context.training is None:
        raise OptionError(f"the recipe {chosen.name} trains, but there are no training images.", "Give train cases.")
    teacher = context.teacher or network
    for position, method in list(enumerate(chosen.methods))[done:until]:
        name = title(type(method))
        _check(method, network.state, "this network does not take", "Start from the uncompressed network.")
        checkpoint = None if checkpoints is None else checkpoints / f"{position}-{name.rpartition(':')[2]}.pt2"
        if checkpoint is not None and checkpoint.exists():
            network = pt2.load(checkpoint)
            continue
        context.progress.say(f"{chosen.name}: {name}")
        start = time.perf_counter()
        before = network.history
        batches = context.calibration
        own = replace(
            context,
            calibration=batches.titled(name) if isinstance(batches, Titled) else batches,
            teacher=teacher,
            checkpoint=None if checkpoint is None else checkpoint.with_suffix(".training"),
        )
        with memory_at_hand():
            network = method.run(network, own)
        record = to_table(method) | {"method": name, "seconds": round(time.perf_counter() - start, 3)}
        for found in network.history[len(before) :]:  # what the method itself found worth keeping
            record.update(found)
        network = replace(network, history=(*before, record))
        if checkpoint is not None:
            scratch = checkpoint.with_suffix(".tmp")
            pt2.save(network, scratch)
            scratch.rename(checkpoint)
    return network


def _check(method: Method, state: State, problem: str, hint: str) -> None:
    why = method.refusal(state)
    if why is not None:
        raise OptionError(f"{problem} {type(method).__name__}: {why}.", hint)
