"""Norms whose affine can take a scale per channel, and layer norms that can take a shift too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.structure.channels import ChannelReader, readers
from microtome.graph.structure.scaling import LayerPair, at_inputs, network_constant, scale_readers

# Where a norm's weight stands among its arguments; its bias comes next.
WEIGHT_AT = {"layer_norm": 2, "group_norm": 2, "batch_norm": 1, "instance_norm": 1}


def affine_norms(network: Network) -> tuple[LayerPair, ...]:
    """Return the norms with an affine whose output reaches only layers, on ways that commute with a scale."""
    return _norms(network, frozenset(WEIGHT_AT), shifts=False)


def layer_norms(network: Network) -> tuple[LayerPair, ...]:
    """Return the layer norms with an affine over the last axis that only linear layers read, behind views at most."""
    return _norms(network, frozenset({"layer_norm"}), shifts=True)


def scale_norm(network: Network, norm: LayerPair, scale: Tensor, shift: Tensor | None = None) -> None:
    """Turn a norm's output x into (x + shift) / scale, channel by channel, and let its readers take that back.

    Args:
        network: to edit.
        norm: one of `affine_norms(network)`, or of `layer_norms(network)` where there is a shift.
        scale: positive, shape (C,).
        shift: shape (C,); None is 0.
    """
    at = WEIGHT_AT[kind(norm.node)]
    gamma, beta = (network_constant(network, norm.node.args[position]) for position in (at, at + 1))
    edit.own_constant(network.graph_module, norm.node, at, gamma / scale)
    edit.own_constant(network.graph_module, norm.node, at + 1, (beta if shift is None else beta + shift) / scale)
    if shift is not None:
        for reader in norm.readers:
            _shift_back(network, reader, shift)
    scale_readers(network, norm.readers, scale)


def fold_affine(network: Network, behind: Sequence[ChannelReader], scale: Tensor, shift: Tensor) -> None:
    """Let layers read x where they read scale · x + shift, channel by channel: exact, in their weights and biases.

    Args:
        network: to edit.
        behind: all that reads the value, on ways that commute with a shift (`channels.readers`).
        scale: shape (C,), of any sign.
        shift: shape (C,).
    """
    for reader in behind:
        _shift_back(network, reader, -shift)
    scale_readers(network, behind, scale)


def _norms(network: Network, kinds: frozenset[str], *, shifts: bool) -> tuple[LayerPair, ...]:
    found = []
    for node in network.graph_module.graph.nodes:
        if kind(node) not in kinds:
            continue
        at = WEIGHT_AT[kind(node)]
        affine = [constant_source(argument) for argument in node.args[at : at + 2]]
        if len(affine) < 2 or any(source is None or len(source.users) > 1 for source in affine):
            continue
        shape = affine[0].meta["val"].shape  # type: ignore[union-attr]
        if len(shape) != 1:  # a layer norm over several axes
            continue
        axis = node.meta["val"].ndim - 1 if kind(node) == "layer_norm" else 1
        behind = readers(node, axis, torch.arange(shape[0]), shifts=shifts)
        if behind:
            found.append(LayerPair(node, int(shape[0]), behind))
    return tuple(found)


def _shift_back(network: Network, reader: ChannelReader, shift: Tensor) -> None:
    """Take a shift of a linear layer's input out of its bias."""
    node: Node = reader.node
    source = constant_source(node.args[1])
    assert source is not None
    change = network_constant(network, node.args[1]) @ at_inputs(reader, shift, 0.0)
    bias = network_constant(network, node.args[2]) if len(node.args) > 2 and node.args[2] is not None else 0
    edit.set_bias(network.graph_module, node, bias - change, str(source.target).removesuffix(".weight"))
