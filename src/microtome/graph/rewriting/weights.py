"""New weights for layers that are rewritten: grids and biases follow the channels."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, kind

PER_CHANNEL = {"prelu": (1,), "batch_norm": (1, 2, 3, 4)}  # arguments with one value per channel


def give_weight(network: Network, node: Node, weight: Tensor, channels: Tensor, axis: int = 0) -> None:
    """Replace a layer's weight, behind its quantizer or not, and let the bias follow. Edits in place.

    Args:
        network: a copy.
        node: a (transposed) convolution.
        weight: the new weight.
        channels: for each new output channel the old one, whose scale and bias it takes; shape (new channels,).
        axis: of `weight` that counts output channels.
    """
    module = network.graph_module
    quantizer = node.args[1]
    if isinstance(quantizer, Node) and kind(quantizer) == "quantizer":
        if len(quantizer.users) > 1:  # two layers share it
            with module.graph.inserting_before(node):
                quantizer = module.graph.node_copy(quantizer)
            node.args = (node.args[0], quantizer, *node.args[2:])
        edit.own_constant(module, quantizer, 0, weight)
        if quantizer.target is aten.fake_quantize_per_channel_affine.default:
            for position in (1, 2):
                take(network, quantizer, position, channels)
            quantizer.args = (*quantizer.args[:3], axis, *quantizer.args[4:])
    else:
        edit.own_constant(module, node, 1, weight)
    if len(node.args) > 2 and node.args[2] is not None:
        take(network, node, 2, channels, weight=True)


def take(network: Network, reader: Node, position: int, channels: Tensor, *, weight: bool = False) -> None:
    """Give a reader of a constant (C,) the entries `channels` of it. Edits in place.

    Args:
        network: a copy.
        reader: the node.
        position: which of its arguments it is.
        channels: indices, shape (new channels,).
        weight: whether the constant is a parameter, or a buffer such as a scale.
    """
    source = constant_source(reader.args[position])
    assert source is not None
    values = network.tensor(str(source.target))[channels.to(network.device)]
    edit.own_constant(network.graph_module, reader, position, values, weight=weight)


def take_channels(network: Network, node: Node, channels: Tensor) -> None:
    """Let the constants of an activation or a norm with one value per channel follow the channels. Edits in place.

    Args:
        network: a copy.
        node: what works channel by channel; others are left as they are.
        channels: for each new channel the old one, shape (new channels,).
    """
    for position in PER_CHANNEL.get(kind(node), ()):
        source = constant_source(node.args[position]) if len(node.args) > position else None
        if source is not None and source.meta["val"].numel() > 1:
            take(network, node, position, channels, weight=position < 3)
