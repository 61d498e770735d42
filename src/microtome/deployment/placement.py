"""Where integers pay on this machine: measured, since reorders and fusions make layers depend on one another.

The layer table of a first run says which layers take longest; then a local search over the whole graph turns single
decisions over and keeps what is faster. Decisions are: which sums and norms read integers beside the layers, which
layers stay in float, and the precision of what is float. Rules of thumb are the start, and what is left when nothing
can be measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from microtome.batches.calibration import tensors
from microtome.deployment.timing import Candidate, interleaved
from microtome.environment import describe
from microtome.errors import MicrotomeError
from microtome.graph.choosing.placement import readers, rule_of_thumb, supported_layers
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.medical.inputs import arrays_of
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.progress import Progress
from microtome.runtimes.base import LayerRun, Runtime, Session
from microtome.types import Batch, Capabilities
from microtome.version import __version__

# A change must be so much faster, interleaved with what it replaces, before it is kept: less is noise.
FASTER = 0.98
WORTH_ROUNDING = 0.95  # and what is in integers must be so much faster than the same network without
TIMING_SECONDS = 2.0  # for one comparison


@dataclass(frozen=True)
class Placement:
    """What was decided.

    Attributes:
        readers: names of the sums and norms that read integers.
        skip: names of the layers that stay in float.
        precision: of what is float.
        milliseconds: median time of one inference with it.
        in_float: whether no layer is left in integers: on this machine the network is faster without.
        tried: one row per comparison: what was changed, both times, whether it was kept.
    """

    readers: frozenset[str]
    skip: frozenset[str]
    precision: str
    milliseconds: float
    in_float: bool = False
    tried: tuple[dict[str, Any], ...] = ()


def measured_placement(
    network: Network,
    runtime: Runtime,
    x: Batch,
    *,
    threads: int,
    budget: float,
    progress: Progress,
    skip: frozenset[str] = frozenset(),
    cache: Path | None = None,
) -> Placement:
    """Search for the fastest placement of quantizers on this machine.

    Args:
        network: without quantizers, as the recipe will quantize it; batch norms are folded if they are not yet.
        runtime: the target.
        x: an input, float32 (1, C, *S), or several by name, of the size that times are wanted for.
        threads: of the runtime; 0 lets it choose.
        budget: seconds after which nothing more is tried.
        progress: told of what is kept.
        skip: layers that stay in float in any case.
        cache: folder of what was decided before; None is `~/.cache/microtome/placement`. An entry is for one network,
            input size, machine, number of threads and version of the runtime.

    Raises:
        MicrotomeError: the network cannot be exported, or does not run.
    """
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "microtome" / "placement"
    file = folder / f"{_key(network, runtime, x, threads, skip)}.json"
    known = _known(file)
    if known is not None:
        progress.say(f"placement measured before on this machine: {known.milliseconds:.2f} ms")
        return known
    with TemporaryDirectory() as scratch_folder:
        found = _Search(network, runtime, x, threads, progress, skip, Path(scratch_folder)).run(budget)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(asdict(found), default=sorted))
    scratch.replace(file)
    return found


class _Search:
    """The state of one search."""

    def __init__(
        self,
        network: Network,
        runtime: Runtime,
        x: Batch,
        threads: int,
        progress: Progress,
        skip: frozenset[str],
        folder: Path,
    ) -> None:
        self.network = network if "folded" in network.state else FoldBatchNorm().run(network)
        self.runtime, self.x = runtime, x
        self.threads, self.progress, self.always = threads, progress, skip
        self.capabilities: Capabilities = runtime.capabilities()
        self.layers = frozenset(layer.name for layer, _ in supported_layers(self.network, self.capabilities))
        self.tried: list[dict[str, Any]] = []
        self.sessions: dict[Placement, Session] = {}
        self.folder = folder
        self.files: dict[tuple[frozenset[str], frozenset[str]], Path] = {}

    def run(self, budget: float) -> Placement:
        """Start from the rules and the uniform precisions; then turn decisions over until the time is up."""
        end = time.monotonic() + budget
        possible = {r.node.name: r for r in readers(self.network, self.capabilities)}
        thumb = rule_of_thumb(self.network, self.capabilities)
        best = Placement(thumb, self.always, self.runtime.PRECISIONS[0], float("inf"))
        for precision in self.runtime.PRECISIONS[1:]:
            best = self.better(best, replace(best, precision=precision), f"what is float in {precision}")
        sums = frozenset(n for n, r in possible.items() if kind(r.node) == "add")
        for named, title in (
            (frozenset[str](), "no sums in integers"),
            (sums, "all sums in integers"),
            (thumb | (possible.keys() - sums), "norms that read integers"),
        ):
            if named != best.readers and time.monotonic() < end:
                best = self.better(best, replace(best, readers=named), title)
        slower = self.slow_in_integers(best) - best.skip
        if slower and time.monotonic() < end:
            best = self.better(best, replace(best, skip=best.skip | slower), "float layers where integers take longer")
        for name in self.longest_first(best, possible.values()):
            if time.monotonic() > end:
                break
            turned = best.readers ^ {name}
            title = (
                f"{possible[name].layer}: {kind(possible[name].node)} {'in' if name in turned else 'not in'} integers"
            )
            best = self.better(best, replace(best, readers=turned), title)
        for precision in self.runtime.PRECISIONS:
            uniform = Placement(frozenset(), self.layers, precision, float("inf"))
            at_most = FASTER if self.layers <= best.skip else 1 / WORTH_ROUNDING
            best = self.better(best, uniform, f"everything in {precision}", at_most)
        return replace(best, in_float=self.layers <= best.skip, tried=tuple(self.tried))

    def better(self, best: Placement, other: Placement, title: str, at_most: float = FASTER) -> Placement:
        """Time two placements in turn; return the other if it takes at most so much of the first one's time."""
        try:
            runs = [self.session(best), self.session(other)]
        except MicrotomeError as error:
            self.tried.append({"change": title, "kept": False, "error": error.problem})
            return best
        rows = interleaved(
            [Candidate(str(k), "", "", session.run) for k, session in enumerate(runs)], self.x, budget=TIMING_SECONDS
        )
        before, after = (row["latency_ms"] for row in rows)
        kept = after < at_most * before
        self.tried.append({"change": title, "before_ms": before, "after_ms": after, "kept": kept})
        if kept:
            self.progress.say(f"{title}: {before:.2f} → {after:.2f} ms")
        return replace(other, milliseconds=after) if kept else replace(best, milliseconds=before)

    def session(self, placement: Placement) -> Session:
        """Return a placement's network, exported and run once. The last two stay open."""
        key = replace(placement, milliseconds=0.0)
        if key not in self.sessions:
            while len(self.sessions) > 1:
                del self.sessions[next(iter(self.sessions))]
            session = self.runtime.open_session(
                self.file(placement), threads=self.threads, precision=placement.precision
            )
            session.run(self.x)
            self.sessions[key] = session
        self.sessions[key] = self.sessions.pop(key)
        return self.sessions[key]

    def file(self, placement: Placement) -> Path:
        """Return a placement's model file; one serves all float precisions."""
        key = placement.readers, placement.skip
        if key not in self.files:
            place = self.folder / str(len(self.files))
            place.mkdir()
            self.files[key] = self.runtime.export(self.quantized(placement), place)
        return self.files[key]

    def quantized(self, placement: Placement) -> Network:
        """Return the network with quantizers; their ranges matter little for speed, so that one image is enough."""
        if self.layers <= placement.skip:
            return self.network
        quantize = Quantize("minmax", search_weights=False, skip=placement.skip, readers=placement.readers)
        return quantize.run(self.network, Context([tensors(self.x)], capabilities=self.capabilities))

    def slow_in_integers(self, best: Placement) -> frozenset[str]:
        """Return the layers whose integer kernel takes longer than the float one."""
        uniform = Placement(frozenset(), self.layers, best.precision, float("inf"))
        integers, floats = (self.times(self.session(p).layer_runs(self.x)) for p in (best, uniform))
        return frozenset(name for name in self.layers if integers.get(name, 0.0) > floats.get(name, float("inf")))

    def times(self, runs: Iterable[LayerRun]) -> dict[str, float]:
        """Return the milliseconds of each layer."""
        names = [layer.name for layer in self.network.layers]
        found: dict[str, float] = {}
        for run in runs:
            for name in names:
                if run.latency_ms is not None and run.runs(name):
                    found[name] = found.get(name, 0.0) + run.latency_ms
        return found

    def longest_first(self, best: Placement, possible: Iterable[Any]) -> list[str]:
        """Return the names of readers, those behind the layers that take longest first."""
        times = self.times(self.session(best).layer_runs(self.x))
        return [r.node.name for r in sorted(possible, key=lambda r: -times.get(r.layer, 0.0))]


def _key(network: Network, runtime: Runtime, x: Batch, threads: int, skip: frozenset[str]) -> str:
    """Return the name of a cache entry."""
    parts = [
        network.fingerprint(),
        runtime.NAME,
        [array.shape for array in arrays_of(x)],
        threads,
        sorted(skip),
        __version__,
        describe(threads),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _known(file: Path) -> Placement | None:
    """Read a cache entry; None if there is none, or it is broken."""
    try:
        entry = json.loads(file.read_text())
        chosen = frozenset(entry["readers"]), frozenset(entry["skip"])
        return Placement(*chosen, entry["precision"], entry["milliseconds"], entry["in_float"], tuple(entry["tried"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
