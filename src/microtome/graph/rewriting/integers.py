"""Integers as the compilers of PyTorch want them: quantize and dequantize around every operator, weights as integers.

The graph simulates: a value is rounded to its grid and stays real. Compilers match pairs of operators instead, those of
`torch.ops.quantized_decomposed`: what gives integers has a quantize behind it, and each reader a dequantize of its own.
Source: the form that PyTorch's export quantization ("PT2E") gives its graphs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.quantizers import Quantizer, quantizers
from microtome.types import QParams

decomposed = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default
BY_CHANNEL = decomposed.dequantize_per_channel.default
LOW, HIGH = -128, 127
MOVES = ("max_pool", "reshape", "slice", "pad", "transpose", "squeeze", "unsqueeze", "select", "pixel_shuffle")
"""What gives its integers on the grid of those that it reads."""

Grid = tuple[float, int, int, int, torch.dtype]


def with_integers(network: Network) -> Network:
    """Return a network that computes the same with pairs of quantize and dequantize, weights as 8-bit integers.

    What a concatenation joins is brought onto one grid before it, and what only moves values has its grid behind it as
    well.

    Args:
        network: quantized to 8 bits or fewer.
    """
    network = network.copy()
    module = network.graph_module
    for one in list(quantizers(network)):
        if one.kind == "weight":
            _integer_weight(network, one)
        else:
            _pair(module.graph, one.node, one.node.args[0], _grid_of(one.qparams))
            module.graph.erase_node(one.node)
    for node in list(module.graph.nodes):
        if kind(node) == "concat":
            _join(module.graph, node)
        elif kind(node) in MOVES:
            source = node.args[0]
            if _is_integer(source) and not any(user.target is QUANTIZE for user in node.users):
                _pair(module.graph, node, node, source.args[1:])
    edit.finish(module)
    return network


def _grid_of(qparams: QParams) -> Grid:
    """Return a grid of activations as the operators take it: signed, so that 0…255 is -128…127."""
    offset = 0 if qparams.qtype.signed else -LOW
    return float(qparams.scale), int(qparams.zero_point) - offset, LOW, HIGH, torch.int8


def _is_integer(value: Any) -> bool:
    return isinstance(value, Node) and value.target is DEQUANTIZE


def _pair(graph: Graph, node: Node, value: Any, grid: Any) -> None:
    """Let all that read `node` read `value` rounded to a grid, each through a dequantize of its own."""
    users = list(node.users)
    with graph.inserting_after(node):
        rounded = graph.call_function(QUANTIZE, (value, *grid))
    for user in users:
        with graph.inserting_before(user):
            user.replace_input_with(node, graph.call_function(DEQUANTIZE, (rounded, *grid)))


def _join(graph: Graph, node: Node) -> None:
    """Bring what a concatenation reads onto the grid asked for behind it; without one, onto its first part's."""
    parts: Any = node.args[0]
    if not all(map(_is_integer, parts)):
        return
    behind = [user for user in node.users if user.target is QUANTIZE]
    grid = (behind[0] if behind else parts[0]).args[1:]
    if not behind:
        _pair(graph, node, node, grid)
    joined = []
    for part in parts:
        if part.args[1:] == grid:
            joined.append(part)
            continue
        with graph.inserting_before(node):
            rounded = graph.call_function(QUANTIZE, (part, *grid))
            joined.append(graph.call_function(DEQUANTIZE, (rounded, *grid)))
    node.args = (joined, *node.args[1:])


def _integer_weight(network: Network, one: Quantizer) -> None:
    """Store a weight as the integers that it is rounded to, and let its layer read them dequantized."""
    module, node, qparams = network.graph_module, one.node, one.qparams
    source = constant_source(node)
    assert source is not None
    name, value = str(source.target), network.tensor(str(source.target))
    axis = qparams.qtype.axis
    shape = [1] * value.ndim
    if axis is not None:
        shape[axis] = -1
    scale, zero = (part.reshape(shape) for part in (qparams.scale, qparams.zero_point))
    integers = torch.clamp(torch.round(value * (1 / scale)) + zero, LOW, HIGH).to(torch.int8)
    stored = _constant(module, f"{name}_int8", integers, node)
    with module.graph.inserting_before(node):
        if axis is None:
            grid = (float(qparams.scale), int(qparams.zero_point), LOW, HIGH, torch.int8)
            real = module.graph.call_function(DEQUANTIZE, (stored, *grid))
        else:
            scales = _constant(module, f"{name}_scale", qparams.scale.float(), node)
            zeros = _constant(module, f"{name}_zero", qparams.zero_point.long(), node)
            real = module.graph.call_function(BY_CHANNEL, (stored, scales, zeros, axis, LOW, HIGH, torch.int8))
    node.replace_all_uses_with(real)
    module.graph.erase_node(node)


def _constant(module: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """Add a buffer and return the node that reads it, right before another."""
    name = edit.unique_name(module, name)
    edit.set_constant(module, name, value, weight=False)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node
