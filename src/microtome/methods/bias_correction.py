"""Empirical bias correction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize
from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.observe import Unquantized
from microtome.graph.operators import constant_source, kind
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.methods.base import Batches
from microtome.types import QParams

# Norms that take each channel's mean away, and a bias with it.
MEAN_FREE = {"instance_norm"}


@dataclass(frozen=True)
class CorrectBias:
    """Give back to each layer's bias the mean shift that quantization of its weight and input causes.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
    4.2 and appendix D (empirical). Each layer is corrected for its own error, measured on the float network's
    activations, so that one pass over the calibration data serves all layers. Layers before an instance norm are left
    alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses: ClassVar[frozenset[str]] = frozenset({"bias_corrected"})
    leaves: ClassVar[frozenset[str]] = frozenset({"bias_corrected"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the network with corrected biases.

        Raises:
            DataError: there is no calibration data.
        """
        network = network.copy()
        layers = {
            layer.node: layer
            for layer in network.layers
            if weight_quantizer(network, layer) is not None and not _mean_is_removed(layer.node)
        }
        shifts: dict[Node, Tensor] = {}
        counts: dict[Node, int] = {}
        weights = {
            node: fake_quantize(network.tensor(str(layer.weight.target)), weight_quantizer(network, layer))  # type: ignore[arg-type]
            for node, layer in layers.items()
        }
        inputs = {node: input_quantizer(network, layer) for node, layer in layers.items()}

        def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
            grid = inputs[node]
            x = arguments[0] if grid is None else _on_grid(arguments[0], grid)
            quantized = node.target(x, weights[node], *arguments[2:])  # type: ignore[operator]
            axis = 1 if kind(node) != "linear" else value.ndim - 1
            difference = (value - quantized).movedim(axis, 0).flatten(1)
            shifts[node] = shifts.get(node, torch.zeros(())) + difference.sum(1, dtype=torch.float64)
            counts[node] = counts.get(node, 0) + difference.shape[1]

        run = Unquantized(network, layers, look)
        for batch in batches:
            run(batch.to(network.device))
        if layers and not counts:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        for node, layer in layers.items():
            shift = (shifts[node] / counts[node]).float()
            source = constant_source(node.args[2]) if len(node.args) > 2 else None
            bias = network.tensor(str(source.target)) if source is not None else torch.zeros_like(shift)
            edit.set_bias(network.graph_module, node, bias + shift, layer.name)
        edit.finish(network.graph_module)
        return replace(network, state=network.state | self.leaves)


def _mean_is_removed(node: Node) -> bool:
    return bool(node.users) and all(kind(user) in MEAN_FREE for user in node.users)


def _on_grid(x: Tensor, grid: QParams) -> Tensor:
    """Fake-quantize an activation in one kernel: a volume of 256³ leaves no room for intermediate copies."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.qtype.qmin, grid.qtype.qmax)
