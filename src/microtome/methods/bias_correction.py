"""Empirical bias correction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize
from microtome.core.columns import column_sum, rows
from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.graph.watching.distribution import mean_is_removed
from microtome.graph.watching.moments import geometry
from microtome.graph.watching.observe import Observed, Unquantized
from microtome.methods.base import Batches
from microtome.types import QParams


@dataclass(frozen=True)
class CorrectBias:
    """Give back to each layer's bias the mean shift that quantization of its weight and input causes.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
    4.2 and appendix D (empirical). Layers before an instance norm are left alone.

    Attributes:
        sequential: False corrects each layer for its own error, measured on the float network's activations, so that
            one pass over the calibration data serves all layers. True corrects layer after layer, each for all that
            quantization before it does to its mean, as in the paper; this takes one pass per layer.
        most_images: batches that are looked at: a mean over space and so many images is sharp.
    """

    sequential: bool = False
    most_images: int = 32

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses: ClassVar[frozenset[str]] = frozenset({"bias_corrected"})
    leaves: ClassVar[frozenset[str]] = frozenset({"bias_corrected"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the network with corrected biases.

        Raises:
            DataError: there is no calibration data.
        """
        network = network.copy()
        batches = _First(batches, self.most_images)
        layers = {
            layer.node: layer
            for layer in network.layers
            if weight_quantizer(network, layer) is not None and not mean_is_removed(layer.node)
        }
        if self.sequential:
            _correct_in_sequence(network, layers, batches)
        else:
            _correct_each(network, layers, batches)
        edit.finish(network.graph_module)
        return replace(network, state=network.state | self.leaves)


class _First:
    """The first batches, each time."""

    def __init__(self, batches: Batches, most: int) -> None:
        self._batches, self._most = batches, most

    def __iter__(self) -> Iterator[Tensor]:
        return itertools.islice(iter(self._batches), self._most)


class _Means:
    """Streamed means per output channel of layers."""

    def __init__(self) -> None:
        self._sums: dict[Node, Tensor] = {}
        self._counts: dict[Node, int] = {}

    def add(self, node: Node, value: Tensor) -> None:
        flat = value.movedim(1 if kind(node) != "linear" else value.ndim - 1, 0).flatten(1)
        self.add_sums(node, flat.sum(1, dtype=torch.float64), flat.shape[1])

    def add_sums(self, node: Node, sums: Tensor, count: int) -> None:
        self._sums[node] = self._sums[node] + sums if node in self._sums else sums
        self._counts[node] = self._counts.get(node, 0) + count

    def of(self, node: Node) -> Tensor:
        if node not in self._counts:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        return self._sums[node] / self._counts[node]


def _correct_each(network: Network, layers: dict[Node, Layer], batches: Batches) -> None:
    """Correct layers for what quantization of their own weight and input does.

    A layer is linear, so its mean output follows from the sum of its columns: no second convolution is run.
    """
    shifts = _Means()
    own = {node: _Own(network, layer) for node, layer in layers.items()}

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        sums = own[node].shift(arguments[0], tuple(value.shape[2:]))
        shifts.add_sums(node, sums, value.numel() // len(sums))

    run = Unquantized(network, layers, look)
    for batch in batches:
        run(batch.to(network.device))
    for node, layer in layers.items():
        _shift_bias(network, layer, shifts.of(node).float())


class _Own:
    """A layer's weight and grids, and what they do to the sum of its outputs."""

    def __init__(self, network: Network, layer: Layer) -> None:
        self._geometry = geometry(layer.node)
        weight, grid = network.tensor(str(layer.weight.target)), weight_quantizer(network, layer)
        assert grid is not None
        self._weight = rows(weight.double(), self._geometry)
        self._rounded = rows(fake_quantize(weight, grid).double(), self._geometry)
        self._grid = input_quantizer(network, layer)

    def shift(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return by how much quantization lowers the sum over all outputs, per channel; `size` is theirs in space."""
        before = column_sum(x, self._geometry, size)
        after = before if self._grid is None else column_sum(_on_grid(x, self._grid), self._geometry, size)
        lost = self._weight @ before[..., None] - self._rounded @ after[..., None]
        return lost.flatten()


def _correct_in_sequence(network: Network, layers: dict[Node, Layer], batches: Batches) -> None:
    """Correct layer after layer, each with the layers before it quantized and corrected."""
    expected = _Means()
    run = Unquantized(network, layers, lambda node, _, value: expected.add(node, value))
    for batch in batches:
        run(batch.to(network.device))
    for node, layer in layers.items():
        actual = _Means()
        watched = Observed(network, [node], actual.add)
        for batch in batches:
            watched(batch.to(network.device))
        _shift_bias(network, layer, (expected.of(node) - actual.of(node)).float())


def _shift_bias(network: Network, layer: Layer, shift: Tensor) -> None:
    source = constant_source(layer.node.args[2]) if len(layer.node.args) > 2 else None
    bias = network.tensor(str(source.target)) if source is not None else torch.zeros_like(shift)
    edit.set_bias(network.graph_module, layer.node, bias + shift, layer.name)


def _on_grid(x: Tensor, grid: QParams) -> Tensor:
    """Fake-quantize an activation in one kernel: a volume of 256³ leaves no room for intermediate copies."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.qtype.qmin, grid.qtype.qmax)
