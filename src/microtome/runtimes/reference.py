"""The reference: the captured graph in torch, with integer arithmetic simulated by fake quantization."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import MissingExtraError
from microtome.runtimes.base import LayerRun, one_by_one
from microtome.types import Array, Capabilities, OperatorSupport, QType

if TYPE_CHECKING:
    from microtome.graph.network import Network

NAME = "reference"
EXTRA = "torch"
PRECISIONS = ("f32",)
RUNS_INTEGERS = False


def capabilities() -> Capabilities:
    """Return the widest set: everything can be simulated.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("The target reference", EXTRA) from error
    support = OperatorSupport(QType(8, signed=False, symmetric=False), QType(8, narrow=True))
    return Capabilities(
        NAME,
        operators={"conv": support, "conv_transpose": support, "linear": support},
        transparent=frozenset({"concat", "max_pool"}),
    )


def export(network: Network, folder: Path) -> Path:
    """Write `model.pt2`."""
    from microtome.graph import pt2

    path = folder / "model.pt2"
    pt2.save(network, path)
    return path


def files(path: Path) -> tuple[Path, ...]:
    """Return the one file."""
    return (path,)


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.pt2` file; `precision` must be f32."""
    assert precision in PRECISIONS
    return Session(path, threads=threads)


class Session:
    """A graph in torch on the CPU. Nothing runs in integers: `executed` is always f32."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Read the file.

        Raises:
            ReadError: the file is missing or broken.
        """

        from microtome.graph import pt2

        self._network: Network = pt2.load(path)
        self._threads = threads

    @property
    def network(self) -> Network:
        """The graph that this session runs."""
        return self._network

    def run(self, x: Array) -> Array:
        """Run float32 (N, C, *S) → float32 (N, K, *S) or (N, K)."""
        import torch

        with torch.inference_mode(), limited(self._threads):
            output: Array = self._network(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()
        return output

    def stream(self, batches: Iterable[Array]) -> Iterator[Array]:
        """Run inputs of one shape, one after another."""
        return one_by_one(self.run, batches)

    def layer_runs(self, x: Array) -> tuple[LayerRun, ...]:
        """Return one record per layer; times are not measured."""
        return tuple(
            LayerRun((layer.name,), layer.op, "f32", "torch (simulated integers)", None)
            for layer in self._network.layers
        )


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """Run torch with so many threads; 0 leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
