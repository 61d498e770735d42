"""Times of stages and of networks, and the bytes of model files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.runtimes.base import Runtime
from microtome.types import Array

if TYPE_CHECKING:
    from microtome.graph.network import Network

MOST_ROUNDS = 50
BUDGET_SECONDS = 20.0  # for all candidates together
# The least number of rounds, by how many seconds one round takes: a whole-brain network may need minutes for one.
LEAST_ROUNDS = ((4.0, 5), (20.0, 3), (float("inf"), 1))


@dataclass(frozen=True)
class Candidate:
    """Something that runs the network: for one row of `runs`."""

    name: str
    runtime: str
    precision: str
    run: Callable[[Array], Any]
    bytes: int | None = None
    compressed: bool = False


class Stopwatch:
    """Seconds of each stage, in `laps`."""

    def __init__(self) -> None:
        """Start the first stage."""
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage under its name; the next one begins."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 6)
        self._last = now


def interleaved(candidates: Sequence[Candidate], x: Array, *, budget: float = BUDGET_SECONDS) -> list[dict[str, Any]]:
    """Time the candidates in turn, A B C A B C …, so that a machine that slows down slows them all.

    Args:
        candidates: what to time; each must have run once before, since the first run compiles and allocates.
        x: one input, float32 (1, C, *S).
        budget: seconds for all together; there are at least as many rounds as LEAST_ROUNDS says, at most MOST_ROUNDS.

    Returns:
        The rows of `runs` in `result.json`: median latency in milliseconds, with quartiles.
    """
    seconds: dict[str, list[float]] = {c.name: [] for c in candidates}
    begin = time.perf_counter()
    for done in range(1, MOST_ROUNDS + 1):
        for candidate in candidates:
            start = time.perf_counter()
            candidate.run(x)
            seconds[candidate.name].append(time.perf_counter() - start)
        elapsed = time.perf_counter() - begin
        least = next(rounds for limit, rounds in LEAST_ROUNDS if elapsed / done <= limit)
        if done >= least and elapsed > budget:
            break
    return [_row(candidate, np.array(seconds[candidate.name]) * 1e3) for candidate in candidates]


def _row(candidate: Candidate, milliseconds: Array) -> dict[str, Any]:
    low, median, high = (round(float(v), 4) for v in np.percentile(milliseconds, (25, 50, 75)))
    row: dict[str, Any] = {
        "name": candidate.name,
        "runtime": candidate.runtime,
        "precision": candidate.precision,
        "latency_ms": median,
        "quartiles_ms": [low, high],
        "rounds": len(milliseconds),
        "bytes": candidate.bytes,
    }
    return {**row, "compressed": True} if candidate.compressed else row


def eager(network: Network, threads: int) -> Callable[[Array], Array]:
    """Return a function that runs the network in eager PyTorch."""
    import torch

    from microtome.runtimes.reference import limited

    def run(x: Array) -> Array:
        with torch.inference_mode(), limited(threads):
            tensor = torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(network.device)
            output: Array = network(tensor).cpu().numpy()
        return output

    return run


def file_bytes(runtime: Runtime, path: Path) -> int:
    """Bytes on disk of everything that a model file consists of."""
    return sum(file.stat().st_size for file in runtime.files(path))
