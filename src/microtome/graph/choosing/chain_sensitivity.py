"""What the network loses when chains stand in place of layers, one layer at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.distillation import divergence
from microtome.errors import DataError
from microtome.graph.edit import Link
from microtome.graph.network import Batch, Network
from microtome.graph.structure.chains import applied
from microtome.graph.watching.replay import Replay, without_mutation

Objective = Literal["kl", "error"]


@torch.no_grad()
def chain_losses(
    network: Network,
    options: Mapping[str, Sequence[Sequence[Link]]],
    batches: Iterable[Batch],
    *,
    objective: Objective = "kl",
    sigmoid: bool = False,
) -> dict[str, list[float]]:
    """Put each chain in its layer's place, alone, and look at the network's first output.

    Each batch runs once, and from each layer on once for each of its chains.

    Args:
        network: without quantizers.
        options: chains by the name of the layer.
        batches: (N, C, *S).
        objective: what is lost. `kl`: the mean divergence of the output's probabilities from the network's. `error`:
            the squared error of the output over its variance.
        sigmoid: the network's channels are probabilities of their own.

    Returns:
        For each layer one loss per chain, at least 0.

    Raises:
        DataError: there are no batches, or an output is NaN or infinite.
    """
    network = without_mutation(network)
    of_node: dict[Node, str] = {layer.node: layer.name for layer in network.layers if layer.name in options}
    losses = {name: [0.0] * len(chains) for name, chains in options.items()}
    replay, count = Replay(network, of_node), 0
    for batch in batches:
        expected = network(batch)
        count += len(expected)
        power = float((expected - expected.mean()).double().square().mean()) or 1.0
        for node, arguments, resume in replay(batch):
            name = of_node[node]
            for place, chain in enumerate(options[name]):
                actual = resume(applied(chain, arguments[0]))
                losses[name][place] += len(expected) * _loss(actual, expected, power, objective, sigmoid)
    if options and not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    for name, found in losses.items():
        if not all(math.isfinite(value) for value in found):
            raise DataError(f"the output is NaN or infinite when {name} is factorized.", "Leave that layer out.")
    return {name: [max(value, 0.0) / count for value in found] for name, found in losses.items()}


def _loss(actual: Tensor, expected: Tensor, power: float, objective: Objective, sigmoid: bool) -> float:
    if objective == "kl":
        return float(divergence(actual, expected, sigmoid=sigmoid))
    return float((actual - expected).double().square().mean()) / power
