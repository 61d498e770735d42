"""A captured graph without what exporters leave: scales and shifts per channel behind a layer go into its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, groups, kind, output_axis

SCALES = {aten.mul.Tensor: "mul", aten.div.Tensor: "div", aten.add.Tensor: "add", aten.sub.Tensor: "sub"}
SPACE_PADDED = ("pad",)


def tidied(network: Network) -> Network:
    """Return the network with scales, shifts and even padding of zeros taken into the convolutions beside them."""
    network = network.copy()
    graph_module, changed = network.graph_module, False
    for layer in network.layers:
        if layer.op not in ("conv", "conv_transpose") or layer.node.args[1] is not layer.weight:
            continue  # a weight on a grid stays as it is
        if len(layer.weight.users) != 1:
            continue
        while (found := _scale_behind(layer.node)) is not None:
            node, what, constant = found
            values = _per_channel(network, layer.node, constant)
            if values is None:
                break
            _take_in(network, layer.node, layer.name, what, values)
            node.replace_all_uses_with(layer.node)
            graph_module.graph.erase_node(node)
            changed = True
        changed = _pad_inside(layer.node) or changed
    if not changed:
        return network
    edit.finish(graph_module)
    return network


def _scale_behind(node: Node) -> tuple[Node, str, Any] | None:
    """Return the only reader of a layer, if it scales or shifts by a constant: it, what it does, the constant."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    if reader.op != "call_function" or reader.target not in SCALES or reader.kwargs:
        return None
    what = SCALES[reader.target]
    first, second = reader.args[:2]
    if first is node:
        return reader, what, second
    return (reader, what, first) if what in ("mul", "add") else None


def _per_channel(network: Network, layer: Node, constant: Any) -> Tensor | None:
    """Return a constant as one value per output channel; None if it is something else."""
    rank = layer.meta["val"].ndim
    channels = int(layer.meta["val"].shape[1])
    if isinstance(constant, int | float):
        return torch.full((channels,), float(constant))
    if not isinstance(constant, Node) or constant.op != "get_attr":
        return None
    tensor = network.tensor(str(constant.target))
    if not tensor.is_floating_point() or tensor.ndim > rank:
        return None
    shape = [1] * (rank - tensor.ndim) + list(tensor.shape)
    if any(n != 1 for axis, n in enumerate(shape) if axis != 1):
        return None
    return tensor.reshape(-1).expand(channels).contiguous()


def _take_in(network: Network, layer: Node, name: str, what: str, values: Tensor) -> None:
    graph_module = network.graph_module
    source = layer.args[2] if len(layer.args) > 2 else None
    bias = network.tensor(str(source.target)) if isinstance(source, Node) else None
    if what in ("add", "sub"):
        shift = values if what == "add" else -values
        edit.set_bias(graph_module, layer, shift if bias is None else bias + shift, name)
        return
    factor = values if what == "mul" else 1 / values
    weight = network.tensor(str(layer.args[1].target))  # type: ignore[union-attr]
    axis = output_axis(layer)
    per_group = factor if axis == 0 or groups(layer) == 1 else None
    if per_group is None:  # transposed and in groups: the weight's axis 0 counts the inputs of all groups
        count = groups(layer)
        blocks = weight.reshape(count, -1, *weight.shape[1:])
        scaled = (blocks * factor.reshape(count, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    else:
        scaled = weight * factor.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])
    edit.own_constant(graph_module, layer, 1, scaled)
    if bias is not None:
        edit.set_bias(graph_module, layer, bias * factor, name)


def _pad_inside(layer: Node) -> bool:
    """Let a convolution do the padding with zeros before it, where it is the same on both sides of each axis."""
    source = layer.args[0]
    if kind(layer) != "conv" or not isinstance(source, Node) or kind(source) not in SPACE_PADDED:
        return False
    if len(source.users) != 1 or str(layer.target).endswith(".padding"):
        return False
    value = source.args[3] if len(source.args) > 3 else source.kwargs.get("value")
    mode = source.args[2] if len(source.args) > 2 else "constant"
    pads: Any = source.args[1]
    dims = layer.meta["val"].ndim - 2
    pads = [*pads, *[0] * (2 * dims - len(pads))]
    if mode != "constant" or value not in (None, 0, 0.0) or len(pads) != 2 * dims:
        return False
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    if before != after or not all(isinstance(n, int) and n >= 0 for n in before):
        return False
    args = [*layer.args, *[None, None, None][: max(0, 5 - len(layer.args))]]
    args[2:5] = [
        args[2] if len(layer.args) > 2 else None,
        layer.args[3] if len(layer.args) > 3 else [1] * dims,
        layer.args[4] if len(layer.args) > 4 else [0] * dims,
    ]
    own: Any = args[4]
    own = list(own) * (dims if len(own) == 1 else 1)
    args[4] = [a + b for a, b in zip(own, before, strict=True)]
    args[0] = source.args[0]
    layer.args = tuple(args)
    return True
