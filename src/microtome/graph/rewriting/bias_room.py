"""Weights' scales so large that a bias fits into 32 bits beside them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from microtome.core.affine import SMALLEST_SCALE
from microtome.core.range_search import channel_extremes
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.types import QParams

LARGEST = 2.0**30  # half of what an int32 holds: a bias may be rounded up


def room_for_biases(network: Network) -> Network:
    """Return the network with larger scales for those channels whose bias would not fit; the same one if all fit.

    Integer kernels add a bias as int32 in steps of the input's scale times the weight's. In a channel that training has
    left with tiny weights these steps are so small that the bias is cut off: a channel of 0.5 everywhere becomes one of
    0. With a scale that leaves room for the bias, the weights lose only what is far below the bias's last digits.
    """
    found = [(layer, grid) for layer in network.layers if (grid := _roomy(network, layer)) is not None]
    if not found:
        return network
    names = {layer.name: grid for layer, grid in found}
    network = network.copy()
    for layer in network.layers:
        quantizer = layer.node.args[1]
        if layer.name in names and len(quantizer.users) == 1:  # type: ignore[union-attr]
            edit.set_grid(network.graph_module, quantizer, names[layer.name])  # type: ignore[arg-type]
    edit.finish(network.graph_module)
    return network


def _roomy(network: Network, layer: Layer) -> QParams | None:
    """Return a layer's grid of weights with room for its bias; None where there is room."""
    weight, inputs = weight_quantizer(network, layer), input_quantizer(network, layer)
    source = constant_source(layer.node.args[2]) if len(layer.node.args) > 2 else None
    if weight is None or inputs is None or source is None or kind(layer.node.args[1]) != "quantizer":  # type: ignore[arg-type]
        return None
    bias = network.tensor(str(source.target)).abs()
    least: Tensor = bias / (LARGEST * inputs.scale.to(bias.device))
    scale = weight.scale
    if scale.numel() not in (1, least.numel()):
        return None
    least = (least.amax() if scale.numel() == 1 else least).to(scale.dtype)
    # A channel without weights has any scale, which may be so large that the bias is rounded to few digits.
    empty = (channel_extremes(network.tensor(str(layer.weight.target)).abs(), weight.qtype.axis)[1] == 0) & (least > 0)
    wanted = torch.where(empty, least.clamp(min=SMALLEST_SCALE), torch.maximum(scale, least))
    return None if torch.equal(wanted, scale) else replace(weight, scale=wanted)
