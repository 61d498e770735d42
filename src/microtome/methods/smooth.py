"""Balancing of activations and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.core.range_search import weight_qparams
from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import kind, output_axis
from microtome.graph.structure.channels import ChannelReader
from microtome.graph.structure.layernorm import affine_norms, scale_norm
from microtome.graph.structure.scaling import LayerPair, at_inputs, input_ranges, pairs, rescale, scaled_inputs
from microtome.graph.watching.observe import Unquantized
from microtome.methods.base import EMPTY, Batches, Context, Method, Phase, State
from microtome.types import QType

SMALLEST = 1e-5


@dataclass(frozen=True)
class Smooth(Method):
    """Take the outliers of single channels out of what layers read, and put them into the layers' weights.

    Source: Xiao et al., "SmoothQuant", ICML 2023, equation 4: scale = max|x|^alpha / max|w|^(1 - alpha) per channel.
    The scale is taken from what makes the value: a norm's affine, or the layer before (through ReLU and its kin). Where
    neither can take it, the value stays as it is. The network computes the same as before.

    Attributes:
        alpha: how much goes over to the weights, 0 to 1; 0.5 shares evenly.
        candidates: choose alpha for each value by itself, or to leave it alone: whatever gives the least squared error
            behind the layers that read it, in a second pass over the data. Empty takes `alpha` everywhere.
        weight_bits: width at which candidates are compared.
        activation_bits: the same for what layers read.
    """

    alpha: float = 0.5
    candidates: tuple[float, ...] = ()
    weight_bits: int = 8
    activation_bits: int = 8

    phase: ClassVar[Phase] = Phase.STRUCTURE
    needs: ClassVar[State] = frozenset({"folded"})
    leaves: ClassVar[State] = frozenset({"smoothed"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no share, and widths that no grid has."""
        if not all(0 <= alpha <= 1 for alpha in (self.alpha, *self.candidates)):
            raise OptionError(
                f"alpha is a share, 0 to 1, not {self.alpha if not self.candidates else self.candidates}."
            )
        if not all(2 <= bits <= 16 for bits in (self.weight_bits, self.activation_bits)):
            raise OptionError("grids have 2 to 16 bits.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the balanced network.

        Raises:
            DataError: there are no calibration images.
        """
        network = network.copy()
        layers, norms = pairs(network), affine_norms(network)
        chain = (*layers, *norms)
        seen = _extremes(network, chain, context.calibration)
        trials = {
            pair.node: [self._scale(network, pair, seen, alpha) for alpha in self.candidates or (self.alpha,)]
            for pair in chain
        }
        if self.candidates:
            trials = self._best(network, chain, trials, seen, context.calibration)
        for pair in layers:
            rescale(network, pair, trials[pair.node][0])
        for pair in norms:
            scale_norm(network, pair, trials[pair.node][0])
        edit.finish(network.graph_module)
        return self.done(network)

    def _scale(self, network: Network, pair: LayerPair, seen: _Extremes, alpha: float) -> Tensor:
        """Return what to divide the channels of a value by."""
        activation, weight = _largest(pair, seen, network.device), input_ranges(network, pair)
        scale = activation.pow(alpha) / weight.clamp(min=SMALLEST).pow(1 - alpha)
        return torch.where((activation < SMALLEST) | (weight < SMALLEST), torch.ones_like(scale), scale)

    def _best(
        self,
        network: Network,
        chain: Sequence[LayerPair],
        trials: Mapping[Node, list[Tensor]],
        seen: _Extremes,
        batches: Batches,
    ) -> dict[Node, list[Tensor]]:
        """Return for each value the scale with the least error behind its readers."""
        trials = {node: [torch.ones_like(scales[0]), *scales] for node, scales in trials.items()}
        errors = {node: [0.0] * len(scales) for node, scales in trials.items()}

        def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
            for pair in chain:
                for reader in (reader for reader in pair.readers if reader.node is node):
                    for number, scale in enumerate(trials[pair.node]):
                        factors = at_inputs(reader, scale, 1.0)
                        errors[pair.node][number] += self._error(reader, arguments, value, factors, seen[node])

        run = Unquantized(network, seen, look)
        for batch in batches:
            run(batch)
        return {node: [scales[errors[node].index(min(errors[node]))]] for node, scales in trials.items()}

    def _error(
        self,
        reader: ChannelReader,
        arguments: tuple[Any, ...],
        value: Tensor,
        factors: Tensor,
        extremes: tuple[Tensor, Tensor],
    ) -> float:
        """Return the squared error of a layer whose input is divided by `factors`, then rounded like its weight."""
        low, high = (extreme / factors for extreme in extremes)
        grid = qparams_from_range(low.min(), high.max(), QType(self.activation_bits, signed=False, symmetric=False))
        shape = [1] * arguments[0].ndim
        shape[_channel_axis(reader.node, arguments[0])] = -1
        x = torch.fake_quantize_per_tensor_affine(
            arguments[0] / factors.reshape(shape), float(grid.scale), int(grid.zero_point), 0, grid.qtype.qmax
        )
        narrow = QType(self.weight_bits, narrow=self.weight_bits > 2, axis=output_axis(reader.node))
        weight = scaled_inputs(reader.node, arguments[1], factors)
        rounded = reader.node.target(x, fake_quantize(weight, weight_qparams(weight, narrow)), *arguments[2:])  # type: ignore[operator]
        return float((rounded - value).square().sum(dtype=torch.float64))


_Extremes = dict[Node, tuple[Tensor, Tensor]]
"""Smallest and largest value of each input of a layer, shape (I,)."""


def _extremes(network: Network, chain: Sequence[LayerPair], batches: Batches) -> _Extremes:
    """Stream the extremes of what the readers read."""
    nodes = {reader.node for pair in chain for reader in pair.readers}
    found: _Extremes = {}

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        rows = arguments[0].movedim(_channel_axis(node, arguments[0]), 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        before = found.get(node, (low, high))
        found[node] = torch.minimum(before[0], low), torch.maximum(before[1], high)

    run = Unquantized(network, nodes, look)
    for batch in batches:
        run(batch)
    if nodes and not found:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    return found


def _largest(pair: LayerPair, seen: _Extremes, device: torch.device) -> Tensor:
    """Return the largest magnitude of each channel of a value, where it is read; shape (C,)."""
    largest = torch.zeros(pair.channels, device=device)
    for reader in pair.readers:
        low, high = seen[reader.node]
        channels = reader.channels.to(device)
        ours = channels >= 0
        largest.scatter_reduce_(0, channels[ours], torch.maximum(low.abs(), high.abs())[ours], "amax")
    return largest


def _channel_axis(node: Node, x: Tensor) -> int:
    return x.ndim - 1 if kind(node) == "linear" else 1
