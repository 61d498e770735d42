"""Where the channels of a layer's output can be scaled, and the scale taken back by those who read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, groups, kind
from microtome.graph.structure.channels import ChannelReader, free, readers
from microtome.graph.watching.distribution import recall, remember


@dataclass(frozen=True, eq=False)
class LayerPair:
    """A layer, or a norm, whose output channels can be scaled freely, and all that reads them."""

    node: Node
    channels: int
    readers: tuple[ChannelReader, ...]


def pairs(network: Network) -> tuple[LayerPair, ...]:
    """Return the layers whose output reaches only layers, on ways that commute with a scale per channel.

    Layers whose weight another one shares are left out.
    """
    found = []
    for layer in network.layers:
        count = output_channels(layer.node)
        axis = layer.node.meta["val"].ndim - 1 if layer.op == "linear" else 1
        behind = readers(layer.node, axis, torch.arange(count)) if free(layer.node) else ()
        if behind:
            found.append(LayerPair(layer.node, count, behind))
    return tuple(found)


def output_channels(node: Node) -> int:
    """Return the number of a layer's output channels."""
    shape = _weight(node).shape
    return int(shape[1] * groups(node) if kind(node) == "conv_transpose" else shape[0])


def output_ranges(network: Network, pair: LayerPair) -> Tensor:
    """Return the largest magnitude of the weights that make each channel; shape (C,)."""
    return _ranges(network_constant(network, pair.node.args[1]), pair.node, second=kind(pair.node) == "conv_transpose")


def input_ranges(network: Network, pair: LayerPair) -> Tensor:
    """Return the largest magnitude of the weights that read each channel, over all readers; shape (C,)."""
    largest = torch.zeros(pair.channels, device=network.device)
    for reader in pair.readers:
        weight = network_constant(network, reader.node.args[1])
        ranges = _ranges(weight, reader.node, second=kind(reader.node) != "conv_transpose")
        channels = reader.channels.to(ranges.device)
        ours = channels >= 0
        largest.scatter_reduce_(0, channels[ours], ranges[ours], "amax")
    return largest


def rescale(network: Network, pair: LayerPair, scale: Tensor) -> None:
    """Divide a layer's output channels by `scale` (C,), positive, and multiply it into the weights that read them."""
    graph_module = network.graph_module
    weight = network_constant(network, pair.node.args[1])
    edit.own_constant(
        graph_module, pair.node, 1, _scaled(weight, pair.node, 1 / scale, second=kind(pair.node) == "conv_transpose")
    )
    if len(pair.node.args) > 2 and pair.node.args[2] is not None:
        edit.own_constant(graph_module, pair.node, 2, network_constant(network, pair.node.args[2]) / scale)
    normal = recall(pair.node)
    if normal is not None:
        remember(pair.node, normal.mean / scale, None if normal.std is None else normal.std / scale)
    scale_readers(network, pair.readers, scale)


def scale_readers(network: Network, found: Iterable[ChannelReader], scale: Tensor) -> None:
    """Multiply `scale` (C,) into the weights that read each channel."""
    for reader in found:
        weight = network_constant(network, reader.node.args[1])
        scaled = scaled_inputs(reader.node, weight, at_inputs(reader, scale, 1.0))
        edit.own_constant(network.graph_module, reader.node, 1, scaled)


def at_inputs(reader: ChannelReader, values: Tensor, otherwise: float) -> Tensor:
    """Spread a value per channel (C,) over the inputs of a layer that reads them (I,)."""
    channels = reader.channels.to(values.device)
    return torch.where(channels >= 0, values[channels.clamp(min=0)], torch.full_like(values[:1], otherwise))


def scaled_inputs(node: Node, weight: Tensor, factors: Tensor) -> Tensor:
    """Multiply a weight by a factor per input of its layer (I,)."""
    return _scaled(weight, node, factors, second=kind(node) != "conv_transpose")


def network_constant(network: Network, argument: object) -> Tensor:
    """Return the constant that a node reads."""
    source = constant_source(argument)
    assert source is not None
    return network.tensor(str(source.target))


def _weight(node: Node) -> Tensor:
    source = constant_source(node.args[1])
    assert source is not None
    value: Tensor = source.meta["val"]
    return value


def _parts(weight: Tensor, node: Node, *, second: bool) -> Tensor:
    """View a weight with its first axis in front, (C, -1); or as (groups, -1, channels of one group, -1)."""
    return weight.reshape(groups(node), -1, weight.shape[1], weight[0, 0].numel()) if second else weight.flatten(1)


def _ranges(weight: Tensor, node: Node, *, second: bool) -> Tensor:
    """Return the largest magnitude along a weight's first axis, or along its second one, group by group."""
    parts = _parts(weight, node, second=second).abs()
    return parts.amax((1, 3)).flatten() if second else parts.amax(1)


def _scaled(weight: Tensor, node: Node, scale: Tensor, *, second: bool) -> Tensor:
    """Multiply a weight along its first axis, or along its second one, group by group."""
    shape = (groups(node), 1, -1, 1) if second else (-1, 1)
    return (_parts(weight, node, second=second) * scale.reshape(shape)).reshape(weight.shape)
