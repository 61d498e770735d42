"""What every runtime offers. Nothing here needs torch: a hospital PC runs packages without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from microtome.types import Array, Capabilities

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

    def run(self, x: Array) -> Array:
        """Run float32 (N, C, *S) → float32 (N, K, *S) or (N, K)."""

    def stream(self, batches: Iterable[Array]) -> Iterator[Array]:
        """Run inputs that all have one shape, several at a time where the runtime can; results in order.

        The next inputs are taken while earlier ones run. A result is valid until the next one is asked for, and must
        not be written to. Closing the iterator early is safe.
        """

    def layer_runs(self, x: Array) -> tuple[LayerRun, ...]:
        """Run `x` with profiling and return what each operator did."""


class Runtime(Protocol):
    """A runtime module: these names are what it must define."""

    NAME: str
    EXTRA: str
    PRECISIONS: tuple[str, ...]
    RUNS_INTEGERS: bool  # False: they are simulated, and nothing is faster

    def capabilities(self) -> Capabilities:
        """Return what this machine's runtime runs in integers."""

    def export(self, network: Network, folder: Path) -> Path:
        """Write the network into `folder` and return the file that a session opens."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all files that belong to a model file: they count as its bytes and travel together."""

    def open_session(self, path: Path, *, threads: int, precision: str) -> Session:
        """Load a model file; `precision` is for what the file leaves in float."""


def one_by_one(run: Callable[[Array], Array], batches: Iterable[Array]) -> Iterator[Array]:
    """Be the `stream` of a runtime that runs one input at a time."""
    for batch in batches:
        yield run(batch)
