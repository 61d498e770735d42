"""What every runtime offers. Nothing here needs torch: a hospital PC runs packages without it."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from microtome.errors import DataError
from microtome.types import Array, Batch, Capabilities, Port

if TYPE_CHECKING:
    from microtome.graph.network import Network


@dataclass(frozen=True)
class LayerRun:
    """How the runtime really ran one operator: its kernel, the precision of that kernel, and for how long.

    `executed` is `int8`, `bf16`, `f16` or `f32`. `names` are the runtime's names of the operators that the kernel does
    at once; a layer of the network is among them by its own name, perhaps with `/…` behind it.
    """

    names: tuple[str, ...]
    op: str
    executed: str
    kernel: str
    latency_ms: float | None

    def runs(self, layer: str) -> bool:
        """Whether this is where a layer of the network was run."""
        return any(name == layer or name.startswith(f"{layer}/") for name in self.names)


class Session(Protocol):
    """A model file, loaded and ready to run."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes; the image is the first."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it returns; the scores are the first."""

    @overload
    def run(self, x: Array) -> Array: ...

    @overload
    def run(self, x: Mapping[str, Array]) -> dict[str, Array]: ...

    def run(self, x: Batch) -> Array | dict[str, Array]:
        """Run an array, float32 (N, C, *S), and return the first output, float32 (N, K, *S) or (N, K).

        A mapping has all inputs by name, and all outputs are returned by name.

        Raises:
            DataError: an input is missing, or unknown.
        """

    def stream(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs that all have one shape, several at a time where the runtime can; results in order.

        Each is what `run` returns for it: the first output for an array, all outputs by name for a mapping.

        The next inputs are taken while earlier ones run. A result is valid until the next one is asked for, and must
        not be written to. Closing the iterator early is safe.
        """

    def layer_runs(self, x: Batch) -> tuple[LayerRun, ...]:
        """Run `x` with profiling and return what each operator did."""


class Exporter(Protocol):
    """The half of a runtime module that writes model files: these names are what it must define.

    It may also define `check(network)`, which `check_network` asks: it raises TargetError for what the runtime would
    compute wrongly.
    """

    NAME: str
    EXTRA: str

    def capabilities(self) -> Capabilities:
        """Return what the runtime runs in integers."""

    def export(self, network: Network, folder: Path) -> Path:
        """Write the network into `folder` and return the file that a session opens."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all files that belong to a model file: they count as its bytes and travel together."""


class Runner(Protocol):
    """The half that runs them."""

    PRECISIONS: tuple[str, ...]
    RUNS_INTEGERS: bool  # False: they are simulated, and nothing is faster

    def measurable(self) -> bool:
        """Return whether this machine can run the target's files: for one that it cannot, there is no evidence."""

    def open_session(self, path: Path, *, threads: int, precision: str) -> Session:
        """Load a model file; `precision` is for what the file leaves in float."""


def check_network(runtime: Exporter, network: Network) -> None:
    """Let a runtime refuse a network before any work is done; one without a `check` refuses nothing.

    Raises:
        TargetError: it would compute something else than the network.
    """
    check = getattr(runtime, "check", None)
    if check is not None:
        check(network)


def open_content(runtime: Runner, path: Path, files: Mapping[str, bytes], *, threads: int, precision: str) -> Session:
    """Open a model whose files are in memory.

    A runtime that reads from memory defines `open_content(path, files, *, threads, precision)`; for another one the
    files are written into a private folder, which lives as long as the session.

    Args:
        runtime: the module.
        path: what the model file is called.
        files: the content of all that `runtime.files(path)` names, by file name.
        threads: see `Runner.open_session`.
        precision: likewise.
    """
    opens = getattr(runtime, "open_content", None)
    if opens is not None:
        session: Session = opens(path, files, threads=threads, precision=precision)
        return session
    folder = tempfile.TemporaryDirectory(prefix="microtome-", ignore_cleanup_errors=True)
    try:
        for name, content in files.items():
            Path(folder.name, name).write_bytes(content)
        session = runtime.open_session(Path(folder.name, path.name), threads=threads, precision=precision)
    except BaseException:
        folder.cleanup()
        raise
    weakref.finalize(session, folder.cleanup)  # also when the program ends
    return session


class Runtime(Exporter, Runner, Protocol):
    """A runtime module: it writes model files, and runs them where the machine can."""


def arrays(x: Batch, inputs: Sequence[Port]) -> list[Array]:
    """Return what a model takes, in order, as contiguous float32.

    Raises:
        DataError: an input is missing, or unknown.
    """
    given = x if isinstance(x, Mapping) else {inputs[0].name: x}
    names = [port.name for port in inputs]
    if set(given) != set(names):
        raise DataError(f"the model takes {', '.join(names)}, not {', '.join(given)}.", "Give each by its name.")
    return [np.ascontiguousarray(given[name], np.float32) for name in names]


def answer(x: Batch, outputs: Mapping[str, Array]) -> Array | dict[str, Array]:
    """Return all outputs where the inputs came by name, and the first one otherwise."""
    return dict(outputs) if isinstance(x, Mapping) else next(iter(outputs.values()))


def one_by_one(run: Callable[[Any], Any], batches: Iterable[Batch]) -> Iterator[Any]:
    """Be the `stream` of a runtime that runs one input at a time."""
    for batch in batches:
        yield run(batch)
