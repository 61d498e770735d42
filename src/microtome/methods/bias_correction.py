"""Empirical bias correction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize
from microtome.core.columns import Geometry, column_sum, rows
from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.network import Batch, Layer, Network
from microtome.graph.operators import kind
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.graph.watching.distribution import mean_is_removed
from microtome.graph.watching.moments import geometry
from microtome.graph.watching.observe import Observed, Unquantized
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Batches, Context, Method, Phase, State
from microtome.types import QParams


@dataclass(frozen=True)
class CorrectBias(Method):
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

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED})
    leaves: ClassVar[State] = frozenset({"bias_corrected"})
    takes: ClassVar[State] = frozenset({FLOAT_BIASES})

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with corrected biases.

        Raises:
            DataError: there is no calibration data.
        """
        network = network.copy()
        batches = _First(context.calibration, self.most_images)
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
        return self.done(network)


class _First:
    """The first batches, each time."""

    def __init__(self, batches: Batches, most: int) -> None:
        self._batches, self._most = batches, most

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self._batches), self._most)


class _Means:
    """Streamed means per output channel of layers."""

    def __init__(self) -> None:
        self._sums: dict[Node, Tensor] = {}
        self._counts: dict[Node, int] = {}

    def add(self, node: Node, value: Tensor) -> None:
        rows = value.movedim(1 if kind(node) != "linear" else value.ndim - 1, 0).flatten(1)
        self._sums[node] = self._sums.get(node, torch.zeros(())) + rows.sum(1, dtype=torch.float64)
        self._counts[node] = self._counts.get(node, 0) + rows.shape[1]

    def of(self, node: Node) -> Tensor:
        if node not in self._counts:
            raise _no_images()
        return self._sums[node] / self._counts[node]


def _correct_each(network: Network, layers: dict[Node, Layer], batches: Batches) -> None:
    """Correct layers for what quantization of their own weight and input does.

    A layer is linear, so its mean output follows from the sum of its columns: no second convolution is run.
    """
    inputs = {node: _Inputs(geometry(node), input_quantizer(network, layer)) for node, layer in layers.items()}

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        inputs[node].add(arguments[0], value)

    run = Unquantized(network, layers, look)
    for batch in batches:
        run(batch)
    for node, layer in layers.items():
        weight, grid = network.tensor(str(layer.weight.target)), weight_quantizer(network, layer)
        assert grid is not None
        edit.shift_bias(network, layer, inputs[node].shift(weight, fake_quantize(weight, grid)))


class _Inputs:
    """The mean column that a layer sees, before and after its input's quantizer."""

    def __init__(self, walk: Geometry, grid: QParams | None) -> None:
        self._walk, self._grid = walk, grid
        self._sums: Tensor = torch.zeros(())
        self._lost: Tensor = torch.zeros(())
        self._count = 0

    def add(self, x: Tensor, output: Tensor) -> None:
        size = tuple(output.shape[2:])
        sums = column_sum(x, self._walk, size)
        self._sums = self._sums.to(sums) + sums
        if self._grid is not None:
            self._lost = self._lost.to(sums) + (sums - column_sum(_on_grid(x, self._grid), self._walk, size))
        self._count += output.numel() // output.shape[1 if self._walk.kernel else -1]

    def shift(self, weight: Tensor, rounded: Tensor) -> Tensor:
        """Return by how much the rounded weight and input lower the mean output, per channel."""
        if not self._count:
            raise _no_images()
        before, after = rows(weight, self._walk), rows(rounded, self._walk)
        mean, lost = (
            (v / self._count).to(weight).expand(len(before), before.shape[-1]) for v in (self._sums, self._lost)
        )
        return ((before - after) @ mean[..., None] + after @ lost[..., None]).flatten()


def _no_images() -> DataError:
    return DataError("there are no calibration images.", "Give at least one training case.")


def _correct_in_sequence(network: Network, layers: dict[Node, Layer], batches: Batches) -> None:
    """Correct layer after layer, each with the layers before it quantized and corrected."""
    expected = _Means()
    run = Unquantized(network, layers, lambda node, _, value: expected.add(node, value))
    for batch in batches:
        run(batch)
    for node, layer in layers.items():
        actual = _Means()
        watched = Observed(network, [node], actual.add)
        for batch in batches:
            watched(batch)
        edit.shift_bias(network, layer, (expected.of(node) - actual.of(node)).float())


def _on_grid(x: Tensor, grid: QParams) -> Tensor:
    """Fake-quantize an activation in one kernel: a volume of 256³ leaves no room for intermediate copies."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.qtype.qmin, grid.qtype.qmax)
