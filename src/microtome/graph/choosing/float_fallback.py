"""Which layers are better left in float: measured, not assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from microtome.errors import DataError, OptionError
from microtome.graph.choosing.placement import ends
from microtome.graph.network import Batch, Network
from microtome.graph.quantizers import weight_quantizer

Quantizer = Callable[[frozenset[str]], Network]
"""Quantizes the network with these layers left in float."""

FLOAT_BITS = 32


@dataclass(frozen=True)
class Kept:
    """What leaving one more layer in float would bring.

    Attributes:
        layer: its name.
        sqnr_db: signal to quantization noise of the network's output with it in float, decibels.
        gain_db: by how much that is more than with it quantized.
        extra_bytes: what its weights take more.
        kept: whether it stays in float.
    """

    layer: str
    sqnr_db: float
    gain_db: float
    extra_bytes: int
    kept: bool

    def as_row(self) -> dict[str, Any]:
        """Return plain values, such as JSON holds; null is without end."""
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in asdict(self).items()}


def keep_float(
    network: Network,
    quantize: Quantizer,
    batches: Iterable[Batch],
    *,
    candidates: Sequence[str] | None = None,
    least_gain_db: float = 3.0,
    most_bytes: int | None = None,
) -> tuple[Kept, ...]:
    """Try one layer after the other in float; keep it so where the network's output gains enough.

    Each candidate is tried on top of those kept before it. Norms and softmax are never quantized, so that the first
    layers and the heads are what is left to ask about. 3 dB are half of the noise's power. One run in float per batch
    and candidate, one quantized; outputs are not kept. The last quantized layer stays quantized.

    Args:
        network: in float, as `quantize` takes it.
        quantize: maps names of layers to skip to the quantized network.
        batches: (N, C, *S); iterated once per candidate, and once more.
        candidates: names of layers, in the order to try; None takes those that no layer stands before or behind.
        least_gain_db: what a layer must gain.
        most_bytes: what all kept layers together may take more; None is no limit.

    Returns:
        A row per candidate that was tried. The layers for `skip` are `skipped(rows)`.

    Raises:
        OptionError: a candidate is no layer of the network.
        DataError: there are no batches.
    """
    layers = {layer.name: layer for layer in network.layers}
    if candidates is None:
        at_ends = ends(network)
        candidates = [name for name in layers if name in at_ends]
    unknown = [name for name in candidates if name not in layers]
    if unknown:
        raise OptionError(f"the network has no layer {unknown[0]!r}.", "`microtome inspect MODEL` lists the layers.")
    kept: frozenset[str] = frozenset()
    quantized = quantize(kept)
    current = _sqnr_db(network, quantized, batches)
    room = math.inf if most_bytes is None else most_bytes
    weights = {layer.name: weight_quantizer(quantized, layer) for layer in quantized.layers}
    left = sum(grid is not None for grid in weights.values())
    rows = []
    for name in candidates:
        grid = weights.get(name)
        if grid is not None and left == 1:
            continue
        count = network.tensor(str(layers[name].weight.target)).numel()
        extra = 0 if grid is None else -(-count * (FLOAT_BITS - grid.qtype.bits) // 8)
        reached = _sqnr_db(network, quantize(kept | {name}), batches)
        gain = 0.0 if reached == current else reached - current
        keep = gain >= least_gain_db and extra <= room
        rows.append(Kept(name, reached, gain, extra, keep))
        if keep:
            kept, current, room, left = kept | {name}, reached, room - extra, left - (grid is not None)
    return tuple(rows)


@dataclass(frozen=True)
class Fallback:
    """Which layers may go back to float, and when.

    Attributes:
        candidates: names of layers, in the order to try; None takes those that no layer stands before or behind.
        least_gain_db: what a layer must gain.
        most_bytes: what all of them together may take more; None is no limit.
    """

    candidates: tuple[str, ...] | None = None
    least_gain_db: float = 3.0
    most_bytes: int | None = None

    def rows(self, network: Network, quantize: Quantizer, batches: Iterable[Batch]) -> tuple[Kept, ...]:
        """Return what `keep_float` returns."""
        limits = {"least_gain_db": self.least_gain_db, "most_bytes": self.most_bytes}
        return keep_float(network, quantize, batches, candidates=self.candidates, **limits)  # type: ignore[arg-type]


def skipped(rows: Iterable[Kept]) -> frozenset[str]:
    """Return the names of the layers that stay in float."""
    return frozenset(row.layer for row in rows if row.kept)


def _sqnr_db(network: Network, quantized: Network, batches: Iterable[Batch]) -> float:
    """Return 10 log10(sum output² / sum error²) over all batches; infinite without error."""
    signal = noise = 0.0
    count = 0
    with torch.no_grad():
        for batch in batches:
            output = network(batch)
            signal += float(output.square().sum(dtype=torch.float64))
            noise += float((output - quantized(batch)).square().sum(dtype=torch.float64))
            count += 1
    if not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
