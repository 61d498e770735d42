"""What becomes of the values on each quantizer's grid: how many are clipped, how much noise rounding adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from microtome.core.affine import real_range
from microtome.core.histogram import Histogram
from microtome.graph.network import Batch, Network
from microtome.graph.operators import aten, constant_source, kind
from microtome.graph.quantizers import Quantizer, quantizers
from microtome.graph.watching.float_counterpart import rounded_constant
from microtome.graph.watching.replay import without_mutation
from microtome.types import QParams

BARS = 64
# Of a larger tensor every k-th value is looked at: shares and ratios do not need all of them.
MOST_VALUES = 1 << 22
LARGEST_DB = 200.0  # stands for no noise at all


class GridUse:
    """Sums over the values that one quantizer got; tensors that hold NaN or infinity are left out."""

    def __init__(self) -> None:
        """Start empty."""
        self._histogram = Histogram()
        self._values = self._clipped = 0
        self._signal = self._noise = 0.0

    def update(self, real: Tensor, rounded: Tensor, qparams: QParams) -> None:
        """Add values, of any shape, with what the quantizer made of them. Beyond the last integer means clipped."""
        if real.numel() == 0:
            return
        low, high = (end.to(real.device) for end in real_range(qparams))
        half = qparams.scale.to(real.device) / 2
        axis = qparams.qtype.axis
        if axis is not None and half.ndim:
            shape = [1] * real.ndim
            shape[axis] = -1
            low, high, half = low.reshape(shape), high.reshape(shape), half.reshape(shape)
        elif real.numel() > MOST_VALUES:
            step = -(-real.numel() // MOST_VALUES) | 1  # odd: an even one would meet the same columns of each row
            real, rounded = real.flatten()[::step], rounded.flatten()[::step]
        if not bool(torch.isfinite(real).all()):
            return
        self._histogram.update(real)
        self._values += real.numel()
        self._clipped += int(((real < low - half) | (real > high + half)).sum())
        self._signal += float(real.double().square().sum())
        self._noise += float((rounded - real).double().square().sum())

    @property
    def clipped(self) -> float | None:
        """Share of the values, 0 to 1, that lay beyond the ends of the grid; None without values."""
        return self._clipped / self._values if self._values else None

    @property
    def sqnr_db(self) -> float | None:
        """Power of the values over power of the rounding error, decibels; None without values."""
        return decibels(self._signal, self._noise) if self._values else None

    def histogram(self) -> Bars | None:
        """Return counts over the range of the values; None without values."""
        if not self._values:
            return None
        counts, width = self._histogram.counts, self._histogram.width
        used = counts.nonzero().flatten()
        first, last = int(used[0]), int(used[-1])
        merged = -(-(last - first + 1) // BARS)
        amount = -(-(last - first + 1) // merged)
        padded = torch.zeros(amount * merged, dtype=counts.dtype)
        padded[: last - first + 1] = counts[first : last + 1]
        low = (first - len(counts) // 2) * width
        bars = [int(count) for count in padded.reshape(amount, merged).sum(1)]
        return Bars(low, low + amount * merged * width, tuple(bars))


@dataclass(frozen=True)
class Bars:
    """A histogram of at most 64 bars of equal width from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


def decibels(signal: float, noise: float) -> float | None:
    """Return 10 log10(signal / noise), within ±200; None where one of them is not finite."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return None
    if noise == 0:
        return LARGEST_DB
    ratio = 10 * math.log10(max(signal, 1e-300) / noise)
    return round(min(LARGEST_DB, max(-LARGEST_DB, ratio)), 2)


class GridUses:
    """Watches all quantizers of a network that are a grid of their own."""

    def __init__(self, network: Network, counterpart: Network) -> None:
        """Look at the weights.

        Args:
            network: with quantizers.
            counterpart: what weights were before they were rounded.
        """
        self._network = without_mutation(network)
        self._found = list(quantizers(self._network))
        self._uses = {q.node: GridUse() for q in self._found if not _one_of_two(q.node)}
        self._watch = _AtQuantizers(self._network, self._look)
        self._grids = {q.node: q.qparams for q in self._found}
        originals = counterpart.constants()
        for quantizer in self._found:
            source = constant_source(quantizer.node)
            if source is not None and quantizer.node in self._uses:
                rounded = rounded_constant(self._network, quantizer.node)
                real = originals.get(str(source.target), rounded)
                self._uses[quantizer.node].update(real, rounded, quantizer.qparams)

    def update(self, x: Batch) -> None:
        """Run one batch (N, C, *S) through the quantized network."""
        with torch.no_grad():
            self._watch.run(*self._network.arguments(x))

    def __iter__(self) -> Iterator[tuple[Quantizer, GridUse | None]]:
        """Yield the quantizers as `quantizers(network)` does; None for the halves of a twin grid."""
        for quantizer in self._found:
            yield quantizer, self._uses.get(quantizer.node)

    def _look(self, node: Node, real: Tensor, rounded: Tensor) -> None:
        if node in self._uses and constant_source(node) is None:
            self._uses[node].update(real, rounded, self._grids[node])


class _AtQuantizers(Interpreter):
    """Runs a network and shows what goes into each quantizer and what comes out."""

    def __init__(self, network: Network, look: Callable[[Node, Tensor, Tensor], None]) -> None:
        super().__init__(network.graph_module)
        self.extra_traceback = False
        self._look = look

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if kind(n) == "quantizer":
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self._look(n, arguments[0], value)
        return value


def _one_of_two(node: Node) -> bool:
    """Whether a quantizer holds only some of the values: the other half of a twin grid holds the rest."""
    return any(user.target is aten.where.self for user in node.users)
