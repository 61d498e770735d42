"""From a compressed graph to an opened session: export, check against the simulation, time beside the parent."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from microtome.deployment.layers import layer_table
from microtome.deployment.memory import fits
from microtome.deployment.timing import BUDGET_SECONDS, Candidate, eager, file_bytes, interleaved
from microtome.errors import MicrotomeError, TargetError
from microtome.graph.network import Network
from microtome.medical.inputs import arrays_of, image_of
from microtome.progress import Progress, Silent
from microtome.results import LayerRow, Run
from microtome.runtimes.base import Runtime, Session
from microtome.staging import Place
from microtome.types import Array, Batch

MOST_DB = 200.0
# Values of an output that say whether it is another one altogether: the few of a classifier may all lie about zero.
ENOUGH = 64
# How much faster the network must be with its float part in bf16 before that is chosen.
WORTHWHILE = 0.95


@dataclass(frozen=True)
class Running:
    """How networks are run.

    Attributes:
        threads: of the runtime and of eager PyTorch; 0 is all.
        precision: of what the compressed network leaves in float; None takes the first that the target offers, unless
            another is clearly faster.
    """

    threads: int = 0
    precision: str | None = None


@dataclass(frozen=True)
class Deployed:
    """The exported networks, opened."""

    path: Path
    session: Session
    precision: str
    runs: list[Run]
    layers: list[LayerRow]
    parity_db: float
    quantization_db: float


def deploy(
    parent: Network,
    network: Network,
    target: Runtime,
    x: Batch,
    place: Place,
    *,
    title: str,
    running: Running | None = None,
    progress: Progress | None = None,
) -> Deployed:
    """Export parent and compressed network, open them, and look at how they run.

    Args:
        parent: uncompressed.
        network: compressed.
        target: the runtime.
        x: one input, float32 (1, C, *S), or several by name.
        place: takes the files.
        title: of the compressed network in the table of times, such as the recipe's name.
        running: threads and precision.
        progress: told what is done.

    Raises:
        TargetError: an operator cannot be exported, or the compressed network does not run.
    """
    progress, running = progress or Silent(), running or Running()
    threads, precision = running.threads, running.precision
    if len(network.outputs) > 1 and not isinstance(x, Mapping):
        x = {network.inputs[0].name: x}  # all outputs are checked then
    parent, network = parent.to("cpu"), network.to("cpu")
    progress.say(f"export to {target.NAME}")
    baseline = place.work / "parent"
    baseline.mkdir(exist_ok=True)
    parent_path, path = target.export(parent, baseline), target.export(network, place.package)

    run_parent = eager(parent, threads)
    real, simulated = run_parent(x), eager(network, threads)(x)
    sizes = file_bytes(target, parent_path), file_bytes(target, path)
    wanted = target.PRECISIONS if precision is None else (precision,)
    contenders = [_Contender(f"{target.NAME} {p}", parent_path, p, p, sizes[0], real) for p in target.PRECISIONS]
    contenders = contenders if target.RUNS_INTEGERS else []
    names = {p: _name(target.NAME, title, p, len(wanted) > 1) for p in wanted}
    contenders += [_Contender(names[p], path, p, title, sizes[1], simulated, True) for p in wanted]
    timing = _Timing(target, x, threads, Candidate("eager f32", "pytorch", "f32", run_parent))
    if fits(parent, image_of(x).size, len(contenders)):
        progress.say("time parent and compressed network, interleaved")
        runs = timing.interleaved(contenders)
    else:
        progress.say("time parent and compressed network one after the other: together they do not fit into memory")
        runs = timing.in_turn(contenders)
    latency = {run["name"]: run["latency_ms"] for run in runs}
    ours = [contender for contender in contenders if contender.compressed and contender.name in latency]
    best = ours[0]
    for other in ours:
        if latency[other.name] < WORTHWHILE * latency[best.name]:
            best = other
    runs = [run for run in runs if not run.get("compressed") or run["name"] == best.name]
    chosen = timing.session(best)
    layers = layer_table(network, chosen.layer_runs(x))
    return Deployed(path, chosen, best.precision, runs, layers, sqnr(simulated, chosen.run(x)), sqnr(real, simulated))


def _name(target: str, title: str, precision: str, several: bool) -> str:
    """Return what a compressed network is called among the runs; others are called by target and precision."""
    name = f"{target} {title}" + (f", rest {precision}" if several else "")
    return f"{name}, compressed" if title == precision else name


@dataclass(frozen=True, eq=False)
class _Contender:
    """A model file in one float precision.

    `precision` is that of what is float, `label` what the table says, `expected` what the graph makes of the example.
    """

    name: str
    path: Path
    precision: str
    label: str
    bytes: int
    expected: Batch
    compressed: bool = False


class _Timing:
    """Opens model files and times them, beside eager PyTorch."""

    def __init__(self, target: Runtime, x: Batch, threads: int, reference: Candidate) -> None:
        self._target, self._x, self._threads, self._reference = target, x, threads, reference
        self._open: dict[str, Session] = {}
        self._ran: set[str] = set()

    def interleaved(self, contenders: Sequence[_Contender]) -> list[Run]:
        """Time all of them in turns; sessions stay open.

        Raises:
            MicrotomeError: the compressed network runs in no precision; what the last one said.
        """
        opened = [contender for contender in contenders if self._opens(contender, contenders)]
        return interleaved([self._reference, *(self._candidate(contender) for contender in opened)], self._x)

    def in_turn(self, contenders: Sequence[_Contender]) -> list[Run]:
        """Time one after the other; each is closed before the next one opens. Raises as `interleaved`."""
        share = BUDGET_SECONDS / (len(contenders) + 1)
        runs = interleaved([self._reference], self._x, budget=share)
        for contender in contenders:
            if self._opens(contender, contenders):
                runs += interleaved([self._candidate(contender)], self._x, budget=share)
                del self._open[contender.name]
                gc.collect()
        return runs

    def session(self, contender: _Contender) -> Session:
        """Return the session of one; the others are closed."""
        session = self._open.get(contender.name) or self._start(contender)
        self._open = {}
        return session

    def _candidate(self, contender: _Contender) -> Candidate:
        run = self._open[contender.name].run
        return Candidate(contender.name, self._target.NAME, contender.label, run, contender.bytes, contender.compressed)

    def _opens(self, contender: _Contender, contenders: Sequence[_Contender]) -> bool:
        """Open one; False where it does not run in its precision, but its file does, or may, in another."""
        same = [other for other in contenders if other.compressed == contender.compressed]
        try:
            self._open[contender.name] = self._start(contender)
        except MicrotomeError as error:
            if contender is same[-1] and not self._ran.intersection(other.name for other in same):
                raise self._advised(error, same) from error
            return False
        self._ran.add(contender.name)
        return True

    def _start(self, contender: _Contender) -> Session:
        """Open one and run it once: the first run compiles and allocates.

        Raises:
            MicrotomeError: it does not run, or returns something else than the graph.
        """
        target, precision = self._target.NAME, contender.precision
        session = self._target.open_session(contender.path, threads=self._threads, precision=precision)
        found = session.run(self._x)
        ratio = sqnr(contender.expected, found)
        if ratio == -MOST_DB:
            raise TargetError(
                f"{target} returns NaN or infinity in {precision} where the graph does not.",
                "Some value lies beyond what it computes with: choose another --precision or --target.",
            )
        if any(_is_another(*pair) for pair in zip(arrays_of(contender.expected), arrays_of(found), strict=True)):
            raise TargetError(
                f"{target} computes something else than the graph in {precision}: {ratio} dB.",
                "It runs an operator of this network wrongly: choose another --target.",
            )
        return session

    def _advised(self, error: MicrotomeError, tried: Sequence[_Contender]) -> MicrotomeError:
        """Return the error with a precision that was not tried, if the file runs in it; the error itself if in none."""
        known = [contender.precision for contender in tried]
        for precision in (name for name in self._target.PRECISIONS if name not in known):
            try:
                self._start(replace(tried[0], precision=precision))
            except MicrotomeError:
                continue
            return type(error)(error.problem, f"In {precision} it runs: --precision {precision}")
        return error


def sqnr(signal: Batch, other: Batch) -> float:
    """Signal-to-quantization-noise ratio in decibels; 200 if both are equal, -200 if one alone is NaN or infinite.

    What is NaN or infinite in both, such as scores outside of a mask, is left out. Of several outputs it is the least.
    """
    return min(_sqnr(*pair) for pair in zip(arrays_of(signal), arrays_of(other), strict=True))


def _is_another(expected: Array, found: Array) -> bool:
    """Whether an output is another one altogether."""
    return bool(expected.any()) and expected.size >= ENOUGH and _sqnr(expected, found) < 0


def _sqnr(signal: Array, other: Array) -> float:
    finite = np.isfinite(signal)
    if not np.array_equal(signal[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return -MOST_DB
    if not finite.any():
        return MOST_DB
    signal, other = signal[finite].astype(np.float64), other[finite].astype(np.float64)
    largest = float(np.abs(signal).max()) or 1.0  # squares of 1e200 would be infinite, and those of 1e-200 zero
    noise, power = float(np.square((signal - other) / largest).mean()), float(np.square(signal / largest).mean())
    if noise == 0:
        return MOST_DB
    return round(float(np.clip(10 * np.log10(max(power, 1e-30) / noise), -MOST_DB, MOST_DB)), 2)
