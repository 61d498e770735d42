"""The float network that a quantized one stands for, and how one layer alone would round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.graph import edit
from microtome.graph.dynamic import dynamic_bits
from microtome.graph.network import Layer, Network
from microtome.graph.operators import aten, kind
from microtome.graph.quantizers import input_quantizer, qparams_of, weight_quantizer
from microtome.graph.watching.replay import without_mutation
from microtome.types import Bits, QType

# A logarithmic grid read backwards, from the rounded value to the value: see `graph.nonuniform`.
LOGARITHMIC = (
    aten.masked_fill.Scalar,
    aten.exp2.default,
    aten.div.Tensor,
    aten.clamp.default,
    aten.round.default,
    aten.mul.Tensor,
    aten.log2.default,
    aten.clamp.default,
)
DYNAMIC_DEPTH = 6  # operators between a dynamic quantizer's result and the value it rounds
VIEWS = ("concat", "max_pool", "reshape", "transpose", "pad")


def float_counterpart(network: Network, parent: Network | None = None) -> Network:
    """Return the same graph with nothing rounded: static, dynamic and logarithmic quantizers are taken out.

    Args:
        network: the compressed graph.
        parent: where weights come from, so that what methods did to them counts as an error too: its constants of the
            same name and shape. Batch norms must be folded as in `network`. None keeps the network's own weights.

    Returns:
        A network without operators that write into their input, whose layers are those of `network`, in order.
    """
    network = without_mutation(network)
    for node in list(network.graph_module.graph.nodes):
        value = _rounded(node)
        if value is not None:
            node.replace_all_uses_with(value)
    edit.finish(network.graph_module)
    if parent is not None:
        _take_weights(network, parent)
    return network


def input_rounding(network: Network, layer: Layer) -> Callable[[Tensor], Tensor] | None:
    """Return what a layer's input goes through: its grid, or one found anew each time. None if it is in float."""
    grid = input_quantizer(network, layer)
    if grid is not None:
        scale, zero_point, qtype = float(grid.scale), int(grid.zero_point), grid.qtype
        return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, qtype.qmin, qtype.qmax)
    bits = _dynamic_input(layer)
    if bits is None:
        return None
    found = QType(bits, signed=False, symmetric=False)
    return lambda x: fake_quantize(x, qparams_from_range(x.min(), x.max(), found))


def rounded_constant(network: Network, argument: Any) -> Any:
    """Return what an argument of a layer evaluates to: a weight as its quantizer rounds it; None and numbers as is.

    Raises:
        TypeError: the argument is computed from the network's input.
    """
    if not isinstance(argument, Node):
        return argument
    if argument.op == "get_attr":
        return network.tensor(str(argument.target))
    if kind(argument) != "quantizer":
        raise TypeError(f"{argument.name} is no constant")
    return fake_quantize(rounded_constant(network, argument.args[0]), qparams_of(network, argument))


def widths_of(network: Network, layer: Layer) -> Bits:
    """Return the bits of a layer's weight and of its input; None is float."""
    encoding = network.formats.get(str(layer.weight.target))
    weight, activation = weight_quantizer(network, layer), input_quantizer(network, layer)
    bits = encoding.format.bits if encoding is not None else weight.qtype.bits if weight is not None else None
    return bits, activation.qtype.bits if activation is not None else _dynamic_input(layer)


def _rounded(node: Node) -> Node | None:
    """Return the value that a rounding node rounds; None for every other node."""
    value: Any = None
    if kind(node) == "quantizer":
        value = node.args[0]
    elif node.op == "call_function" and node.target is aten.mul.Tensor and dynamic_bits(node) is not None:
        value = _back(node, DYNAMIC_DEPTH)
    elif node.op == "call_function" and node.target is aten.masked_fill.Scalar:
        value = node
        for target in LOGARITHMIC:
            if not isinstance(value, Node) or value.target is not target:
                return None
            value = value.args[0]
    return value if isinstance(value, Node) else None


def _back(node: Node, steps: int) -> Any:
    value: Any = node
    for _ in range(steps):
        value = value.args[0]
    return value


def _dynamic_input(layer: Layer) -> int | None:
    value: Any = layer.node.args[0]
    while isinstance(value, Node) and kind(value) in VIEWS:
        value = value.args[0][0] if isinstance(value.args[0], list | tuple) else value.args[0]
    return dynamic_bits(value) if isinstance(value, Node) else None


def _take_weights(network: Network, parent: Network) -> None:
    """Write the parent's constants into a network of our own."""
    theirs = parent.constants()
    device = network.device
    for name, tensor in network.constants().items():
        if name in theirs and theirs[name].shape == tensor.shape:
            edit.set_constant(network.graph_module, name, theirs[name].to(device), weight=network.is_weight(name))
    without_bias = {layer.name for layer in parent.layers if len(layer.node.args) < 3 or layer.node.args[2] is None}
    for layer in network.layers:
        bias = layer.node.args[2] if len(layer.node.args) > 2 else None
        if layer.name in without_bias and isinstance(bias, Node) and str(bias.target) not in theirs:
            zeros = torch.zeros_like(network.tensor(str(bias.target)))
            edit.set_constant(network.graph_module, str(bias.target), zeros)
