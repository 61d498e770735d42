"""Where a runtime computes something else than the simulation: layer by layer, in steps of each value's own grid.

A copy of the network returns every value that stands on a grid, beside its own outputs, and runs on the runtime too.
Each such value is compared twice: with the simulation from the input on, where what one layer rounds differently is
passed on to the next ones; and with the simulation of this part alone, which is given what the runtime had before it.
The second says which layer departs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from microtome.deployment.deploy import Running
from microtome.deployment.memory import BYTES, USABLE, free_bytes
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.outputs import sizes
from microtome.graph.quantizers import quantizers
from microtome.graph.watching.replay import without_mutation
from microtome.results import Rung
from microtome.runtimes.base import Runtime, Session
from microtome.types import Array, Batch, Port

TAP = "grid"
# A value that lies on the edge between two integers may fall to the other side: a kernel sums in another order, rounds
# its bias to an integer, and where a sum or a concatenation rounds anew that happens twice in one part.
MOST_STEPS = 2.01
FEW = 0.1  # steps on average: a tenth of all values falls to the other side
TOLERANCE = (
    f"A part departs where a value differs by more than {int(MOST_STEPS)} steps of its grid, or all by more than {FEW} "
    "on average, although it was given what the runtime had before it. Less is rounding: values on the edge between "
    "two integers fall to the other side, since kernels sum in another order."
)
COPIES = 4  # of each value: the runtime's, as it is handed over, and two simulated ones
LEVELS = 255  # an output in real numbers is counted in so many steps of its range


@dataclass
class _Difference:
    """The largest difference, and the mean over all inputs, in steps."""

    largest: float = 0.0
    mean: float = 0.0
    count: int = 0

    def add(self, one: Array, other: Array, step: float) -> None:
        difference = np.abs(one - other) / step
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.mean = (self.mean * self.count + float(difference.mean())) / (self.count + 1)
        self.count += 1


@dataclass
class _Watched:
    """A value that is compared: who reads it, its step (None until it is known), which output it is, and how it is."""

    layer: str
    step: float | None
    port: str
    node: Node
    own: _Difference
    passed: _Difference

    @property
    def departs(self) -> bool:
        return self.own.mean > FEW or self.own.largest > MOST_STEPS


class Ladder:
    """A network simulated and on a runtime, value by value."""

    def __init__(self, network: Network, target: Runtime, *, threads: int = 0, precision: str = "f32") -> None:
        """Export the network with all its values on grids as outputs.

        Raises:
            TargetError: the target cannot have these outputs.
        """
        self._network, self._watched = tapped(network.to("cpu"))
        with tempfile.TemporaryDirectory(prefix="microtome-", ignore_cleanup_errors=True) as folder:
            path = target.export(self._network, Path(folder))
            self._session: Session = target.open_session(path, threads=threads, precision=precision)

    def climb(self, x: Batch) -> None:
        """Compare all values for one input, float32 (1, C, *S), or several by name."""
        given = x if isinstance(x, Mapping) else {self._network.inputs[0].name: x}
        actual = self._session.run(given)
        replaced = {one.node: torch.from_numpy(np.ascontiguousarray(actual[one.port])) for one in self._watched}
        arguments = self._network.arguments({name: torch.from_numpy(value) for name, value in given.items()})
        with torch.inference_mode():
            own = _Simulation(self._network, replaced)
            own.run(*arguments)
            passed = _Simulation(self._network, dict.fromkeys(replaced))
            passed.run(*arguments)
        for one in self._watched:
            found, alone, whole = actual[one.port], own.computed[one.node], passed.computed[one.node]
            if one.step is None:
                one.step = float(np.ptp(whole)) / LEVELS or 1.0
            one.own.add(alone, found, one.step)
            one.passed.add(whole, found, one.step)

    def rungs(self) -> list[Rung]:
        """Return what was found, in the order of execution."""
        return [
            {
                "layer": one.layer,
                "step": one.step or 1.0,
                "own_largest": round(one.own.largest, 3),
                "own_mean": round(one.own.mean, 6),
                "largest": round(one.passed.largest, 3),
                "mean": round(one.passed.mean, 6),
                "departs": one.departs,
            }
            for one in self._watched
        ]


def climbed(network: Network, target: Runtime, x: Batch, running: Running) -> list[Rung]:
    """Return the rungs of a network for one input.

    Raises:
        TargetError: the target cannot have all values as outputs.
    """
    ladder = Ladder(network, target, threads=running.threads, precision=running.precision or target.PRECISIONS[0])
    ladder.climb(x)
    return ladder.rungs()


def fits(network: Network) -> bool:
    """Whether all that a ladder holds at the same time fits into memory: the runtime's values, and two simulations."""
    _, watched = tapped(network)
    held = sum(math.prod(sizes(one.node)[1:]) for one in watched)
    return COPIES * BYTES * held <= USABLE * free_bytes()


def tapped(network: Network) -> tuple[Network, list[_Watched]]:
    """Return a copy that also returns every value on a grid, and those values, its own outputs at the end."""
    network = without_mutation(network)  # or what comes later would change a value that is returned
    graph = network.graph_module.graph
    grids = {one.node: one for one in quantizers(network) if one.kind == "activation"}
    result = next(node for node in graph.nodes if node.op == "output")
    own: Any = result.args[0]
    values = list(own) if isinstance(own, list | tuple) else [own]
    taps = [one for node, one in grids.items() if node not in values]
    result.args = ((*values, *(one.node for one in taps)),)
    ports = tuple(Port(f"{TAP}_{place}", tuple(sizes(one.node)[1:]), _free(one.node)) for place, one in enumerate(taps))
    edit.finish(network.graph_module)
    watched = [
        _Watched(one.name, float(one.qparams.scale), port.name, one.node, _Difference(), _Difference())
        for one, port in zip(taps, ports, strict=True)
    ]
    for value, port in zip(values, network.outputs, strict=True):
        step = float(grids[value].qparams.scale) if value in grids else None
        watched.append(_Watched(f"({port.name})", step, port.name, value, _Difference(), _Difference()))
    return replace(network, outputs=(*network.outputs, *ports)), watched


def _free(node: Node) -> tuple[bool, ...]:
    """Return for each axis of a value whether its size is open."""
    return tuple(not isinstance(size, int) for size in node.meta["val"].shape)


class _Simulation(Interpreter):
    """Runs the graph, notes some of its values, and goes on with others in their place where there are such.

    Attributes:
        computed: the values as they were computed.
    """

    def __init__(self, network: Network, replaced: Mapping[Node, Tensor | None]) -> None:
        super().__init__(network.graph_module)
        self.extra_traceback = False
        self.computed: dict[Node, Array] = {}
        self._replaced = replaced

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n not in self._replaced:
            return value
        self.computed[n] = value.numpy()
        other = self._replaced[n]
        return value if other is None else other
