"""A runtime of another package: the smallest that does its work. Its files are graphs, run in torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.runtimes.base import LayerRun, one_by_one
from microtome.runtimes.reference import run_network
from microtome.types import Capabilities, OperatorSupport, QType

NAME = "boxed"
EXTRA = "boxed"
PRECISIONS = ("f32",)
RUNS_INTEGERS = False
HERE = True  # a test turns it off: a device that is not on this machine


def capabilities() -> Capabilities:
    support = OperatorSupport(QType(8, signed=False, symmetric=False), QType(8, narrow=True))
    return Capabilities(NAME, operators={"conv": support})


def export(network: Network, folder: Path) -> Path:
    path = folder / "model.box"
    pt2.save(network, path)
    return path


def files(path: Path) -> tuple[Path, ...]:
    return (path,)


def measurable() -> bool:
    return HERE


def open_session(path: Path, *, threads: int, precision: str) -> Session:
    return Session(pt2.load(path), threads)


class Session:
    def __init__(self, network: Network, threads: int) -> None:
        self._network, self._threads = network, threads
        self.inputs, self.outputs = network.inputs, network.outputs

    def run(self, x: Any) -> Any:
        return run_network(self._network, x, self._threads)

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        return one_by_one(self.run, batches)

    def layer_runs(self, x: Any) -> tuple[LayerRun, ...]:
        return tuple(LayerRun((layer.name,), layer.op, "f32", "box", None) for layer in self._network.layers)
