"""The Hessian of the output's divergence, as far as widths need it: its trace over each layer's weight and input.

At the float network itself the Hessian of the mean Kullback-Leibler divergence is the Fisher matrix Jᵀ A J / M, with J
the Jacobian of the M outputs' logits and A = diag(p) - p pᵀ = S Sᵀ, S = diag(√p) - p √pᵀ (channels of their own:
S = diag(√(p (1 - p)))). For random signs v the squares of Jᵀ S v / √M are therefore estimates of its diagonal without
bias (Hutchinson, 1990), from one backward pass and without labels.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from microtome.graph.network import Batch, Network, first

Gradients = dict[Node, tuple[Tensor, Tensor, Tensor]]
"""By layer: its input, and the mean squared gradients with respect to the input and to the weight."""


def fisher_gradients(
    network: Network, layers: Collection[Node], x: Batch, *, sigmoid: bool, probes: int, seed: int
) -> Gradients:
    """Estimate the Fisher matrix's diagonal on one batch.

    Args:
        network: of `without_mutation`.
        layers: weighted nodes.
        x: (N, C, *S), or several inputs by name.
        sigmoid: channels are probabilities of their own; one channel always is.
        probes: random vectors.
        seed: of the vectors.

    Returns:
        For each layer its input, and estimates of the diagonal in the input's and in the weight's shape, for the
        divergence's mean over batch and space.
    """
    run = _Edges(network, layers)
    with torch.enable_grad():
        output = first(run.run(*network.arguments(x))).float()
    leaves = [tensor for node in layers for tensor in run.edges[node]]
    squares = [torch.zeros_like(leaf) for leaf in leaves]
    generator = torch.Generator().manual_seed(seed)
    for probe in range(probes):
        signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
        vector = root(output.detach(), signs, sigmoid=sigmoid) / math.sqrt(output.numel() / output.shape[1])
        found = torch.autograd.grad(output, leaves, vector, retain_graph=probe + 1 < probes, allow_unused=True)
        for square, gradient in zip(squares, found, strict=True):
            if gradient is not None:
                square.add_(gradient.square(), alpha=1 / probes)
    pairs = zip(squares[::2], squares[1::2], strict=True)
    return {node: (run.edges[node][0].detach(), *pair) for node, pair in zip(layers, pairs, strict=True)}


def root(logits: Tensor, signs: Tensor, *, sigmoid: bool) -> Tensor:
    """Return S v for each output position: logits and random signs v are (N, K, *S)."""
    if sigmoid or logits.shape[1] == 1:
        p = logits.sigmoid()
        return (p * (1 - p)).sqrt() * signs
    p = logits.softmax(1)
    return p.sqrt() * signs - p * (p.sqrt() * signs).sum(1, keepdim=True)


class _Edges(Interpreter):
    """Runs the network so that gradients with respect to each layer's own input and weight can be asked for."""

    def __init__(self, network: Network, layers: Collection[Node]) -> None:
        super().__init__(network.graph_module)
        self.extra_traceback = False  # or torch writes source lines of the model into our one-sentence errors
        self._layers = set(layers)
        self.edges: dict[Node, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        if n not in self._layers:
            return super().run_node(n)
        (x, weight, *others), settings = self.fetch_args_kwargs_from_env(n)
        edge = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        weight = weight.detach().requires_grad_()
        self.edges[n] = edge, weight
        return n.target(edge, weight, *others, **settings)  # type: ignore[operator]
