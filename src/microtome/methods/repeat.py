"""Methods again and again, until the network is no longer acceptable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from microtome.errors import OptionError
from microtome.files import write_json
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.graph.watching.macs import layer_sizes
from microtome.methods import METHODS
from microtome.methods.base import EMPTY, Context, Method, Phase, State

Row = dict[str, Any]


@dataclass(frozen=True)
class Repeat(Method):
    """Run methods in rounds, and return the network of the last round that was acceptable.

    A round is acceptable if the score on the tuning patients falls below the parent's by no more than `loss`. Each
    finished round is kept beside the checkpoint, so that an interrupted loop goes on behind it. The course is kept in
    the history: parameters, multiply-accumulates, score, and the latency on the target where it can be measured.

    Source: iterative pruning, Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS
    2015, section 3.1; the stop is ours.

    Attributes:
        methods: of a round, in order.
        rounds: at most.
        loss: of the score that is acceptable; None is the margin that the verdict allows.
        each: values of fields by round, such as `{"sparsify.share": [0.5, 0.8, 0.9]}`; the last holds from there on.
        patience: rounds in a row that may be unacceptable before the loop ends: the next may recover what one lost.
    """

    methods: tuple[Method, ...]
    rounds: int = 8
    loss: float | None = None
    each: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    patience: int = 1

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"repeated"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse no rounds, no methods, and values of fields that none of them has."""
        if self.rounds < 1 or self.patience < 1 or not self.methods:
            raise OptionError("a loop needs at least one method and one round.", "Correct it.")
        for key, values in self.each.items():
            name, _, wanted = key.partition(".")
            if not values or not any(_is(method, name, wanted) for method in self.methods):
                raise OptionError(
                    f"no method of the loop takes {key!r} by round.", "Write METHOD.FIELD, and a list of values."
                )

    @property
    def trains(self) -> bool:
        """Whether one of its methods does."""
        return any(method.trains for method in self.methods)

    def refusal(self, state: State) -> str | None:
        """Say why one of the methods cannot run, in the first round or in a later one."""
        for number in (1, 2)[: self.rounds]:
            for method in self.methods:
                why = method.refusal(state)
                if why is not None:
                    return f"in round {number}, {type(method).__name__}: {why}"
                state = method.after(state)
        return None

    def after(self, state: State) -> State:
        """Return the state that the methods leave."""
        for method in self.methods:
            state = method.after(state)
        return state | self.leaves

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network of the last acceptable round; the one passed if there is none.

        Raises:
            OptionError: there is no score to go by.
            MicrotomeError: of a method in the first round. In a later one it ends the loop, and is in the history.
        """
        if context.score is None:
            raise OptionError(
                "the loop has no score to go by: no tuning patient has a reference.", "Label some of them."
            )
        rounds = _Rounds(self, network, context)
        while not rounds.ended:
            rounds.step()
        return self.done(
            replace(rounds.best, state=network.state, history=network.history),
            {"trajectory": rounds.rows, "round": rounds.chosen},
            state=self.after(network.state) if rounds.chosen else network.state | self.leaves,
        )

    def of_round(self, number: int) -> tuple[Method, ...]:
        """Return the methods with their fields as they are in a round, counted from 1."""
        chosen = []
        for method in self.methods:
            values = {
                key.partition(".")[2]: given[min(number, len(given)) - 1]
                for key, given in self.each.items()
                if _is(method, *key.split(".", 1))
            }
            chosen.append(replace(method, **values) if values else method)  # type: ignore[type-var]
        return tuple(chosen)


class _Rounds:
    """What has been tried: a row for each round, and the network that the next begins with."""

    def __init__(self, loop: Repeat, network: Network, context: Context) -> None:
        self.loop, self.context = loop, context
        self.folder = None if context.checkpoint is None else context.checkpoint.with_suffix(".rounds")
        self.network = self.best = network
        self.chosen, self.error = 0, False
        self.rows: list[Row] = []
        assert context.score is not None
        self.score = context.score
        self.allowed = context.margin if loop.loss is None else loop.loss
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            self._resume(self.folder)
        if not self.rows:
            parent = context.teacher or network
            start = self._described(0, network) | {"parent": round(self.score(parent), 6)}
            start["floor"] = round(start["parent"] - self.allowed, 6)
            self._add(start | {"accepted": True})

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to try."""
        bad = 0
        for row in reversed(self.rows):
            if row["accepted"]:
                break
            bad += 1
        return self.error or len(self.rows) > self.loop.rounds or bad >= self.loop.patience

    def step(self) -> None:
        """Run one round."""
        number = len(self.rows)
        self.context.progress.say(f"round {number} of at most {self.loop.rounds}")
        network = self.network
        try:
            for place, method in enumerate(self.loop.of_round(number)):
                file = None if self.folder is None else self.folder / f"{number}-{place}.training"
                network = method.run(network, replace(self.context, checkpoint=file))
        except OptionError as error:
            if number == 1:
                raise
            self.error = True  # such as nothing left to prune
            self.rows[-1]["ended"] = error.problem
            return
        row = self._described(number, network)
        row["accepted"] = row["score"] >= self.rows[0]["parent"] - self.allowed
        verdict = "acceptable" if row["accepted"] else f"not acceptable (at most {self.allowed:g} may be lost)"
        self.context.progress.say(
            f"round {number}: {row['parameters']:,} parameters, score {row['score']:.4f} after "
            f"{self.rows[0]['parent']:.4f} of the parent: {verdict}"
        )
        self.network = network
        if row["accepted"]:
            self.best, self.chosen = network, number
        self._add(row)

    def _described(self, number: int, network: Network) -> Row:
        """Return what the course says of a network."""
        sizes = layer_sizes(network)
        zeros = sum(int((network.tensor(str(w.target)) == 0).sum()) for w in {layer.weight for layer in network.layers})
        row: Row = {
            "round": number,
            "parameters": network.parameters,
            "nonzero": network.parameters - zeros,
            "macs": sum(size.macs for size in sizes),
            "score": round(self.score(network), 6),
        }
        if self.context.latency is not None:
            row["latency_ms"] = round(self.context.latency(network), 4)
        return row

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        if self.folder is not None:
            scratch = self.folder / "network.tmp"
            pt2.save(self.network, scratch)
            scratch.rename(self.folder / f"{row['round']}.pt2")
            write_json(self.folder / "rows.json", {"rows": self.rows})

    def _resume(self, folder: Path) -> None:
        """Go on behind the rounds that are finished."""
        file = folder / "rows.json"
        if not file.exists():
            return
        self.rows = json.loads(file.read_text())["rows"]
        accepted: Sequence[Row] = [row for row in self.rows if row["accepted"]]
        self.chosen = accepted[-1]["round"]
        self.network = pt2.load(folder / f"{self.rows[-1]['round']}.pt2")
        self.best = pt2.load(folder / f"{self.chosen}.pt2")


def _is(method: Method, name: str, wanted: str) -> bool:
    """Whether a method has that name and that field."""
    home = f"{type(method).__module__}:{type(method).__qualname__}"
    return METHODS.get(name, name) == home and wanted in {f.name for f in fields(method)}  # type: ignore[arg-type]
