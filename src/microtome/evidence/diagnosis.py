"""Where a compressed network loses accuracy: on which grids values are clipped, and which layers the output feels."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from microtome.core.affine import real_range
from microtome.graph.network import Batch, Layer, Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import Quantizer
from microtome.graph.watching.float_counterpart import float_counterpart, input_rounding, rounded_constant, widths_of
from microtome.graph.watching.grid_use import GridUse, GridUses, decibels
from microtome.graph.watching.replay import Replay, without_mutation
from microtome.methods.fold import FoldBatchNorm

MOST_BATCHES = 4
SECONDS = 60.0
# Twin and parent add up in another order, which leaves more than 90 dB; another network leaves next to nothing.
SAME_DB = 50.0
# Methods that move scale from one layer to the next: then the parent's layers are not those of the compressed network.
RESCALED = frozenset({"equalized", "smoothed"})
# From a layer to the output is half of a network, on average.
HALF = 0.5


@dataclass
class _Probe:
    """One layer with what it loses; each pair is (signal, noise)."""

    layer: Layer
    counterpart: Layer
    round_input: Callable[[Tensor], Tensor] | None
    arguments: tuple[Any, ...]
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def touched(self) -> bool:
        """Whether anything of the layer is rounded."""
        return self.round_input is not None or bool(self.arguments)

    def alone(self, arguments: tuple[Any, ...]) -> Any:
        """Compute the layer from the float input as the compressed network does, input rounded too."""
        x = arguments[0] if self.round_input is None else self.round_input(arguments[0])
        return self.counterpart.node.target(x, *self.arguments or arguments[1:], **self.counterpart.node.kwargs)  # type: ignore[operator]

    def add(self, what: str, expected: Tensor, actual: Tensor) -> None:
        """Add one batch to the sums."""
        signal, noise = self.sums.get(what, (0.0, 0.0))
        self.sums[what] = (
            signal + float(expected.double().square().sum()),
            noise + float((actual - expected).double().square().sum()),
        )

    def db(self, what: str) -> float | None:
        """Return signal to noise in decibels; None where it was not measured."""
        return decibels(*self.sums[what]) if what in self.sums else None


class _Clock:
    """How much of the time is left."""

    def __init__(self, seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        return self._seconds - (time.monotonic() - self._start)


def diagnose(
    parent: Network,
    network: Network,
    batches: Iterable[Batch],
    *,
    most_batches: int = MOST_BATCHES,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Say where a compressed network loses accuracy. Nothing here is evidence of how much: it is simulated.

    Args:
        parent: the uncompressed network; its batch norms may be folded or not.
        network: the compressed graph.
        batches: calibration input (N, C, *S); only the first `most_batches` are read, and held.
        most_batches: how many to use.
        seconds: after about so much time what is not measured yet stays null. One run of the network at the least.

    Returns:
        Plain values, as JSON holds them.

        `quantizers`: one row for each quantizer, in the order of `graph.quantizers.quantizers`: `name`, `kind`, `bits`,
        `low`, `high`, `clipped` (share, 0 to 1), `sqnr_db` (of the tensor on this grid; of weights against what they
        were before compression), `histogram` (`low`, `high`, up to 64 `counts`).

        `sensitivity`: `reference` (`parent`; or `own`, where the parent's layers cannot be compared with the network's:
        then changes of weights by methods do not count), `batches`, `complete`, `network_db` (signal to noise of the
        whole network's output), and `layers`: for each `name`, `op`, `bits` of weight and input (null is float),
        `own_db` (at its output, from its own rounding), `accumulated_db` (at its output, from all before it too),
        `alone_db` (at the network's output, when it alone is quantized: the sensitivity).
    """
    clock = _Clock(seconds)
    inputs = list(itertools.islice(batches, most_batches))
    counterpart, reference = _counterpart(parent, network, inputs)
    uses = GridUses(network, counterpart)
    for place, x in enumerate(inputs):
        if place == 0 or clock.left > HALF * seconds:
            uses.update(x)
    return {
        "quantizers": [_row(network, quantizer, use) for quantizer, use in uses],
        "sensitivity": {"reference": reference, **_sensitivity(network, counterpart, inputs, clock)},
    }


def from_history(network: Network) -> dict[str, Any]:
    """Return what methods noted that the report draws, where they did.

    `pareto`: a list of `name`, `bytes`, `loss`, `chosen`. `training`: `steps`, `loss`, `monitor`, a list each.
    `trajectory`: the rounds of a loop. `search`: the front of a search: `name`, `group`, costs, `score`, `chosen`.
    """
    found: dict[str, Any] = {}
    for record in network.history:
        plan = record.get("plan") or {}
        if record.get("pareto"):
            found["pareto"] = [_plan(row, plan) for row in record["pareto"]]
        for key in ("training", "trajectory", "search"):
            if record.get(key):
                found[key] = record[key]
    return found


def _plan(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    widths = [bits[0] for bits in row.get("layer_bits", {}).values() if bits[0] is not None]
    name = f"weights of {min(widths)} to {max(widths)} bits" if widths else "float"
    same = row["bytes"] == chosen.get("bytes") and row["loss"] == chosen.get("loss")
    return {"name": name, "bytes": row["bytes"], "loss": row["loss"], "chosen": same}


def _counterpart(parent: Network, network: Network, inputs: list[Batch]) -> tuple[Network, str]:
    """Return the float network to compare with: with the parent's weights where that gives what the parent gives."""
    parent = parent.to(network.device)
    if "folded" in network.state and "folded" not in parent.state:
        parent = FoldBatchNorm().run(parent)
    if not network.state & RESCALED and inputs:
        counterpart = float_counterpart(network, parent)
        with torch.no_grad():
            expected, actual = parent(inputs[0]).double(), counterpart(inputs[0]).double()
        if expected.shape == actual.shape:
            same = decibels(float(expected.square().sum()), float((actual - expected).square().sum()))
            if same is not None and same > SAME_DB:
                return counterpart, "parent"
    return float_counterpart(network), "own"


def _row(network: Network, quantizer: Quantizer, use: GridUse | None) -> dict[str, Any]:
    source = constant_source(quantizer.node)
    encoding = network.formats.get(str(source.target)) if source is not None else None
    low, high = real_range(quantizer.qparams)
    bars = use.histogram() if use is not None else None
    return {
        "name": quantizer.name,
        "kind": quantizer.kind,
        "bits": encoding.format.bits if encoding is not None else quantizer.qparams.qtype.bits,
        "low": float(low.min()),
        "high": float(high.max()),
        "clipped": None if use is None else use.clipped,
        "sqnr_db": None if use is None else use.sqnr_db,
        "histogram": None if bars is None else {"low": bars.low, "high": bars.high, "counts": list(bars.counts)},
    }


@torch.no_grad()
def _sensitivity(network: Network, counterpart: Network, inputs: list[Batch], clock: _Clock) -> dict[str, Any]:
    """Measure each layer, as far as the time goes."""
    simulated = without_mutation(network)
    probes = [_probe(network, counterpart, *pair) for pair in zip(network.layers, counterpart.layers, strict=True)]
    signal, noise = 0.0, 0.0
    start, runs = time.monotonic(), 0
    for x in inputs:
        expected, actual = counterpart(x), simulated(x)
        signal += float(expected.double().square().sum())
        noise += float((actual - expected).double().square().sum())
        runs += 1
        if clock.left <= 0:
            break
    a_run = (time.monotonic() - start) / max(2 * runs, 1)
    locally = inputs if len(inputs) * 4 * a_run < HALF * clock.left else inputs[:1]
    for x in locally:
        _look_inside(probes, simulated, counterpart, x, clock)
    measured = _worst_first(probes, int(clock.left / max(HALF * a_run, 1e-9)))
    batches = 0
    for x in inputs:
        if batches and HALF * a_run * len(measured) > clock.left:
            break
        if measured:
            _one_at_a_time(measured, counterpart, x, clock)
        batches += 1
    touched = [probe for probe in probes if probe.touched]
    return {
        "batches": batches,
        "complete": all({"own", "alone"} <= probe.sums.keys() for probe in touched),
        "network_db": decibels(signal, noise) if inputs else None,
        "layers": [_layer_row(network, probe) for probe in probes],
    }


def _probe(network: Network, counterpart: Network, layer: Layer, reference: Layer) -> _Probe:
    """Prepare a layer; its arguments are empty where weight and bias are those of the reference."""
    arguments = tuple(rounded_constant(network, argument) for argument in layer.node.args[1:])
    before = tuple(rounded_constant(counterpart, argument) for argument in reference.node.args[1:])
    changed = any(
        not torch.equal(new, old)
        for new, old in zip(arguments, before, strict=True)
        if isinstance(new, Tensor) and isinstance(old, Tensor)
    )
    return _Probe(layer, reference, input_rounding(network, layer), arguments if changed else ())


def _look_inside(probes: list[_Probe], simulated: Network, counterpart: Network, x: Batch, clock: _Clock) -> None:
    """Run both networks side by side and compare them behind each layer."""
    stops = {probe.counterpart.node: probe for probe in probes}
    ours = Replay(simulated, [layer.node for layer in simulated.layers])(x)
    for (node, arguments, _), (other, theirs, _) in zip(Replay(counterpart, stops)(x), ours, strict=True):
        if clock.left <= 0:
            return
        probe = stops[node]
        expected = node.target(*arguments, **node.kwargs)  # type: ignore[operator]
        probe.add("accumulated", expected, other.target(*theirs, **other.kwargs))  # type: ignore[operator]
        if probe.touched:
            probe.add("own", expected, probe.alone(arguments))


def _worst_first(probes: list[_Probe], affordable: int) -> list[_Probe]:
    """Return the layers that there is time for: all, or those that their own rounding hurts most."""
    known = [probe for probe in probes if "own" in probe.sums]
    if len(known) <= affordable:
        return known
    return sorted(known, key=lambda probe: probe.db("own") or 0.0)[: max(affordable, 1)]


def _one_at_a_time(probes: list[_Probe], counterpart: Network, x: Batch, clock: _Clock) -> None:
    """Run the float network, and from each layer on once more with that layer as compressed."""
    expected = counterpart(x)
    stops = {probe.counterpart.node: probe for probe in probes}
    for node, arguments, resume in Replay(counterpart, stops)(x):
        if clock.left <= 0:
            return
        stops[node].add("alone", expected, resume(stops[node].alone(arguments)))


def _layer_row(network: Network, probe: _Probe) -> dict[str, Any]:
    return {
        "name": probe.layer.name,
        "op": probe.layer.op,
        "bits": list(widths_of(network, probe.layer)),
        **{f"{what}_db": probe.db(what) for what in ("own", "accumulated", "alone")},
    }
