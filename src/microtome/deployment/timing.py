"""Times of stages and of networks, and the bytes of model files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.results import Run
from microtome.runtimes.base import Runtime
from microtome.types import Array, Batch

if TYPE_CHECKING:
    from microtome.graph.network import Network

MOST_ROUNDS = 50
BUDGET_SECONDS = 20.0  # for all candidates together
# The least number of rounds, by how many seconds one round takes: a whole-brain network may need minutes for one.
LEAST_ROUNDS = ((4.0, 5), (20.0, 3), (float("inf"), 1))
# Threads of a pool look for more work before they sleep: some 15 ms in GNU's OpenMP, 200 ms in LLVM's and Intel's.
PROBE_SECONDS, MOST_REST_SECONDS = 0.005, 0.5
RESTED = 0.2  # processors that a resting process uses at most: the probe itself and the progress bar
# After a rest caches and clock are cold, which costs about half a millisecond: in a run of so many seconds, nothing.
LONG_SECONDS = 0.25


@dataclass(frozen=True)
class Candidate:
    """Something that runs the network: for one row of `runs`."""

    name: str
    runtime: str
    precision: str
    run: Callable[[Any], Any]
    bytes: int | None = None
    compressed: bool = False


def interleaved(candidates: Sequence[Candidate], x: Batch, *, budget: float = BUDGET_SECONDS) -> list[Run]:
    """Time the candidates in turn, A B C A B C …, so that a machine that slows down slows them all.

    Each begins when the threads of the one before it sleep, and short runs are timed after one that is not: a candidate
    takes as long as it does alone.

    Args:
        candidates: what to time; each must have run once before, since the first run compiles and allocates.
        x: one input, float32 (1, C, *S), or several by name.
        budget: seconds for all together; there are at least as many rounds as LEAST_ROUNDS says, at most MOST_ROUNDS.

    Returns:
        The rows of `runs` in `result.json`: median latency in milliseconds, with quartiles.
    """
    seconds: dict[str, list[float]] = {c.name: [] for c in candidates}
    begin = time.perf_counter()
    for done in range(1, MOST_ROUNDS + 1):
        for candidate in candidates:
            rest()
            spent = _seconds(candidate, x)
            seconds[candidate.name].append(spent if spent > LONG_SECONDS else _seconds(candidate, x))
        elapsed = time.perf_counter() - begin
        least = next(rounds for limit, rounds in LEAST_ROUNDS if elapsed / done <= limit)
        if done >= least and elapsed > budget:
            break
    return [_row(candidate, np.array(seconds[candidate.name]) * 1e3) for candidate in candidates]


def rest() -> None:
    """Wait until the threads of this process sleep, MOST_REST_SECONDS at most.

    Threads that look for more work take the processors from whatever runs next: eager PyTorch's take a second thread of
    OpenVINO's from it, and with that up to half of its speed.
    """
    for _ in range(round(MOST_REST_SECONDS / PROBE_SECONDS)):
        before = time.perf_counter(), time.process_time()
        time.sleep(PROBE_SECONDS)
        elapsed, worked = time.perf_counter() - before[0], time.process_time() - before[1]
        if worked <= RESTED * elapsed:
            return


def _seconds(candidate: Candidate, x: Batch) -> float:
    start = time.perf_counter()
    candidate.run(x)
    return time.perf_counter() - start


def _row(candidate: Candidate, milliseconds: Array) -> Run:
    low, median, high = (round(float(v), 4) for v in np.percentile(milliseconds, (25, 50, 75)))
    row: Run = {
        "name": candidate.name,
        "runtime": candidate.runtime,
        "precision": candidate.precision,
        "latency_ms": median,
        "quartiles_ms": [low, high],
        "rounds": len(milliseconds),
        "bytes": candidate.bytes,
    }
    return {**row, "compressed": True} if candidate.compressed else row


def eager(network: Network, threads: int) -> Callable[[Batch], Any]:
    """Return a function that runs the network in eager PyTorch, as `Session.run` does."""
    from microtome.runtimes.reference import run_network

    def run(x: Batch) -> Any:
        return run_network(network, x, threads)

    return run


def file_bytes(runtime: Runtime, path: Path) -> int:
    """Bytes on disk of everything that a model file consists of."""
    return sum(file.stat().st_size for file in runtime.files(path))
