"""Folding of batch normalisation into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, groups, is_weighted, kind
from microtome.graph.watching.distribution import remember
from microtome.methods.base import EMPTY, Context, Method, Phase, State


@dataclass(frozen=True)
class FoldBatchNorm(Method):
    """Multiply a batch norm's scale into the weight, and its shift into the bias, of the layer whose output it reads.

    Exact in evaluation mode (Jacob et al. 2018, section 3.2). A norm that does not directly follow a layer stays:
    behind a ReLU its shift would meet the next layer's zero padding, where folding forward is not exact. What the norm
    said about the layer's output is kept with the layer (`graph.watching.distribution`).
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"folded"})
    again: ClassVar[bool] = True

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the folded network; no data is read."""
        network = network.copy()
        graph_module = network.graph_module
        for norm in list(graph_module.graph.nodes):
            layer = norm.args[0] if kind(norm) == "batch_norm" else None
            if isinstance(layer, Node) and _foldable(layer, norm):
                _fold(network, graph_module, layer, norm)
        edit.finish(graph_module)
        return self.done(network)


def _foldable(layer: Node, norm: Node) -> bool:
    """Whether the norm alone reads the layer, in evaluation mode, with constant statistics."""
    constants = [norm.args[3], norm.args[4]]
    return (
        is_weighted(layer)
        and len(layer.users) == 1
        and norm.args[5] is False
        and all(constant_source(c) is not None for c in constants)
        and not (kind(layer) == "conv_transpose" and groups(layer) > 1)
    )


def _fold(network: Network, graph_module: GraphModule, layer: Node, norm: Node) -> None:
    def value(argument: object) -> Tensor | None:
        source = constant_source(argument)
        return None if source is None else network.tensor(str(source.target))

    gamma, beta, mean, variance = (value(norm.args[i]) for i in (1, 2, 3, 4))
    assert mean is not None
    assert variance is not None
    scale = (gamma if gamma is not None else torch.ones_like(mean)) * torch.rsqrt(variance + float(norm.args[7]))  # type: ignore[arg-type]
    weight = value(layer.args[1])
    assert weight is not None
    bias = value(layer.args[2]) if len(layer.args) > 2 else None
    shape = [1] * weight.ndim
    shape[1 if kind(layer) == "conv_transpose" else 0] = -1
    new_bias = ((bias if bias is not None else 0) - mean) * scale + (beta if beta is not None else 0)
    source = constant_source(layer.args[1])
    assert source is not None
    edit.own_constant(graph_module, layer, 1, weight * scale.reshape(shape))
    edit.set_bias(graph_module, layer, new_bias, str(source.target).removesuffix(".weight"))
    zeros = torch.zeros_like(mean)
    remember(layer, zeros if beta is None else beta, zeros + 1 if gamma is None else gamma.abs())
    norm.replace_all_uses_with(layer)
    graph_module.graph.erase_node(norm)
