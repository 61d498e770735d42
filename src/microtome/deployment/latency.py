"""How long a network takes on a target: for methods that steer by it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from torch.fx import Node, map_arg

from microtome.deployment.timing import Candidate, interleaved
from microtome.runtimes.base import Runtime, Session
from microtome.types import Batch

if TYPE_CHECKING:
    from microtome.graph.network import Network

SECONDS = 2.0  # for one measurement, of both that are timed


class Latency:
    """Measures networks on a target, each beside the first one that was measured.

    Times of different minutes do not compare: a machine gets busy, or warm. So a network is timed in turn with the
    first, and its share of the first one's time counts. A structure that was measured before is not measured again:
    weights do not change how long it takes.
    """

    def __init__(self, runtime: Runtime, example: Batch, *, threads: int = 0, precision: str | None = None) -> None:
        """Measure nothing yet.

        Args:
            runtime: the target.
            example: one input, float32 (1, C, *S), or several by name.
            threads: of the runtime; 0 is all.
            precision: of what stays in float; None is the first that the target offers.
        """
        self._runtime, self._example, self._threads = runtime, example, threads
        self._precision = runtime.PRECISIONS[0] if precision is None else precision
        self._first: tuple[Session, float] | None = None
        self._known: dict[Hashable, float] = {}

    def __call__(self, network: Network) -> float:
        """Return the median latency in milliseconds.

        Raises:
            TargetError: the network cannot be exported, or does not run.
        """
        structure = structure_of(network)
        if structure not in self._known:
            self._known[structure] = self._measured(network)
        return self._known[structure]

    def _measured(self, network: Network) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = self._runtime.export(network.to("cpu"), Path(folder))
            session = self._runtime.open_session(path, threads=self._threads, precision=self._precision)
            session.run(self._example)
            candidates = [Candidate("this", self._runtime.NAME, self._precision, session.run)]
            if self._first is not None:
                candidates.append(Candidate("first", self._runtime.NAME, self._precision, self._first[0].run))
            rows = interleaved(candidates, self._example, budget=SECONDS)
            times = {row["name"]: row["latency_ms"] for row in rows}
            if self._first is None:
                self._first = session, times["this"]
                return times["this"]
            return self._first[1] * times["this"] / times["first"]


def structure_of(network: Network) -> Hashable:
    """Return what says how long a network takes: its operators, what they read, and the shapes of its tensors."""
    places = {node: place for place, node in enumerate(network.graph_module.graph.nodes)}

    def read(node: Node) -> str:
        return f"%{places[node]}"

    rows = []
    for node in network.graph_module.graph.nodes:
        shape = str(tuple(network.tensor(str(node.target)).shape)) if node.op == "get_attr" else ""
        target = "" if node.op == "get_attr" else str(node.target)
        rows.append((node.op, target, shape, str(map_arg((node.args, dict(node.kwargs)), read))))
    return tuple(rows)
