"""Weights in formats that are no affine grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.fx import Node

from microtome.core.formats import Encoded, Format
from microtome.errors import WeightsError
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.operators import kind, output_axis
from microtome.graph.quantizers import weight_quantizer
from microtome.methods.base import EMPTY, QUANTIZED, Context, Method, Phase, State, check_names
from microtome.types import Capabilities, QParams, QType

SPARSE = "sparse"  # a network's state: zeros among its weights are to be held


@dataclass(frozen=True)
class EncodeWeights(Method):
    """Give quantized weights another number format: powers of two, a codebook, three values, two, …

    Weights are encoded per output channel as they are, and the graph computes with the decoded values. Where these are
    integers times a scale per channel, they lie in 8-bit integers that the target has kernels for; else the weight's
    quantizer is taken out and the layer runs in float. The packed weights are as small as the format says either way.
    Layers whose weight has no quantizer are left alone. Where the network is sparse, a codebook has a zero, and zeros
    stay what they are. No data is read.

    Attributes:
        format: for all layers.
        skip: names of layers that keep their quantizer.
        layer_formats: formats of single layers, by name, over `format`.
    """

    format: Format
    skip: frozenset[str] = frozenset()
    layer_formats: Mapping[str, Format] = field(default_factory=dict)

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED})
    leaves: ClassVar[State] = frozenset({"encoded"})

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with encoded weights.

        Raises:
            OptionError: nothing is known of the target, or `skip` or `layer_formats` names a layer that there is not.
            WeightsError: a weight is empty or not finite, or lies outside of the format's range.
        """
        check_names({*self.skip, *self.layer_formats}, (layer.name for layer in network.layers))
        network = network.copy()
        formats = dict(network.formats)
        for layers, number_format in self._weights(network):
            encoded = _encode(network, layers[0], number_format)
            edit.set_weight(network.graph_module, layers, encoded.decode())
            formats[str(layers[0].weight.target)] = encoded.encoding
            container = self._container(context.target, layers[0], encoded)
            for layer in layers:
                _set_quantizer(network, layer, container)
        edit.finish(network.graph_module)
        constants = network.constants()
        formats = {name: encoding for name, encoding in formats.items() if name in constants}
        return self.done(network, {"grids": {"weight": self.format.name}}, formats=formats)

    def _weights(self, network: Network) -> list[tuple[list[Layer], Format]]:
        """Return the weights to encode: for each the layers that read it, and its format."""
        found: dict[tuple[str, Format, int], list[Layer]] = {}
        for layer in network.layers:
            if layer.name not in self.skip and weight_quantizer(network, layer) is not None:
                number_format = self.layer_formats.get(layer.name, self.format)
                if SPARSE in network.state:
                    number_format = number_format.keeping_zeros()
                key = (str(layer.weight.target), number_format, output_axis(layer.node))
                found.setdefault(key, []).append(layer)
        return [(layers, number_format) for (_, number_format, _), layers in found.items()]

    def _container(self, capabilities: Capabilities, layer: Layer, encoded: Encoded) -> QParams | None:
        """Return the 8-bit grid that holds the values exactly; None if there is none that the target runs."""
        support = capabilities.operators.get(layer.op)
        found = encoded.integers()
        if found is None or support is None or support.weight is None or not support.weight.signed:
            return None
        scale = found[1]
        qtype = QType(8, narrow=True, axis=encoded.axis)
        return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32, device=scale.device), qtype)


def _encode(network: Network, layer: Layer, number_format: Format) -> Encoded:
    weight = network.tensor(str(layer.weight.target))
    try:
        encoded = number_format.encode(weight, output_axis(layer.node))
    except ValueError as error:
        raise WeightsError(f"the weight of {layer.name} cannot be encoded: {error}.") from error
    misfit = number_format.misfit(weight, encoded.decode())
    if misfit is not None:
        raise WeightsError(
            f"{number_format.name} cannot hold the weight of {layer.name}: {misfit}.",
            f"Choose bf16, or a format that scales, such as fp8_e4m3fn; or leave the layer out: --skip {layer.name}",
        )
    return encoded


def _set_quantizer(network: Network, layer: Layer, grid: QParams | None) -> None:
    """Put a layer's weight on a grid, or in float."""
    quantizer = layer.node.args[1]
    if not isinstance(quantizer, Node) or kind(quantizer) != "quantizer":
        return  # another layer shares the quantizer, and was first
    if grid is not None:
        edit.set_grid(network.graph_module, quantizer, grid)
    else:
        quantizer.replace_all_uses_with(quantizer.args[0])  # type: ignore[arg-type]
