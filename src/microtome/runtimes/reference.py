"""The reference: the captured graph in torch, with integer arithmetic simulated by fake quantization."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from microtome.errors import MissingExtraError
from microtome.runtimes.base import LayerRun, arrays, one_by_one
from microtome.types import Array, Batch, Capabilities, OperatorSupport, Port, QType

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
    unsigned = QType(8, signed=False, symmetric=False)
    support = OperatorSupport(unsigned, QType(8, narrow=True))
    products = OperatorSupport(unsigned, unsigned)
    return Capabilities(
        NAME,
        operators={"conv": support, "conv_transpose": support, "linear": support, "matmul": products},
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


def measurable() -> bool:
    """Return whether torch is installed."""
    return find_spec("torch") is not None


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.pt2` file; `precision` must be f32."""
    assert precision in PRECISIONS
    return Session(path, threads=threads)


def open_content(path: Path, files: Mapping[str, bytes], *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.pt2` file that is in memory."""
    assert precision in PRECISIONS
    return Session(path, threads=threads, content=files[path.name])


class Session:
    """A graph in torch on the CPU. Nothing runs in integers: `executed` is always f32."""

    def __init__(self, path: Path, *, threads: int = 0, content: bytes | None = None) -> None:
        """Read the file, or take its content.

        Raises:
            ReadError: the file is missing or broken.
        """

        from microtome.graph import pt2

        self._network: Network = pt2.load(path, content=content)
        self._threads = threads

    @property
    def network(self) -> Network:
        """The graph that this session runs."""
        return self._network

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the network takes."""
        return self._network.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What the network returns."""
        return self._network.outputs

    @overload
    def run(self, x: Array) -> Array: ...

    @overload
    def run(self, x: Mapping[str, Array]) -> dict[str, Array]: ...

    def run(self, x: Batch) -> Array | dict[str, Array]:
        """Run an array and return the first output, or all inputs by name and return all outputs by name."""
        return run_network(self._network, x, self._threads)

    def stream(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs of one shape, one after another."""
        return one_by_one(self.run, batches)

    def layer_runs(self, x: Batch) -> tuple[LayerRun, ...]:
        """Return one record per layer; times are not measured."""
        return tuple(
            LayerRun((layer.name,), layer.op, "f32", "torch (simulated integers)", None)
            for layer in self._network.layers
        )


@overload
def run_network(network: Network, x: Array, threads: int) -> Array: ...


@overload
def run_network(network: Network, x: Batch, threads: int) -> Array | dict[str, Array]: ...


def run_network(network: Network, x: Batch, threads: int) -> Array | dict[str, Array]:
    """Run a network in eager PyTorch on arrays; see `Session.run`.

    Args:
        network: on any device.
        x: float32 (N, C, *S), or several inputs by name.
        threads: of torch; 0 leaves them as they are.
    """
    import torch

    names = [port.name for port in network.inputs]
    with torch.inference_mode(), limited(threads):
        given = dict(zip(names, map(torch.from_numpy, arrays(x, network.inputs)), strict=True))
        if not isinstance(x, Mapping):
            output: Array = network(given).cpu().numpy()
            return output
        return {name: value.cpu().numpy() for name, value in network.run(given).items()}


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
