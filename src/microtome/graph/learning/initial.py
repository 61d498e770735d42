"""Fresh weights for a network that is to be trained from the beginning."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, groups, kind

SLOPE = 0.25  # of PReLU, as torch has it
SPREAD = 0.02  # of what is neither: positions, tokens (Dosovitskiy et al., 2021)
HALVING = ("relu", "leaky_relu", "clamp", "elu", "gelu", "silu", "silu_", "mish", "hardswish", "hardswish_")
GAINS = {**dict.fromkeys(HALVING, math.sqrt(2.0)), "prelu": math.sqrt(2 / (1 + SLOPE**2))}
# By kind: where scale, shift, mean and variance are among the arguments.
NORMS = {"batch_norm": (1, 2, 3, 4), "instance_norm": (1, 2, 3, 4), "group_norm": (2, 3), "layer_norm": (2, 3)}
NEUTRAL = (1.0, 0.0, 0.0, 1.0)


def fresh(network: Network, seed: int = 0) -> Network:
    """Return a network of the same graph with weights as at the beginning of training.

    Layers: normal, of the width that keeps the variance of what flows (He et al., ICCV 2015, equation 10), without the
    factor of two where no ReLU follows; biases 0. Norms: scale 1, shift 0, mean 0, variance 1. Other parameters: of one
    value per channel as they are; the others normal with a deviation of `SPREAD`.

    Args:
        network: in float.
        seed: of the random numbers.
    """
    network = network.copy()
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for node in network.graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if kind(node) in NORMS:
            for position, value in zip(NORMS[kind(node)], NEUTRAL, strict=False):
                made |= {name: torch.full_like(network.tensor(name), value) for name in _names(node, position)}
        elif kind(node) == "prelu":
            made |= {name: torch.full_like(network.tensor(name), SLOPE) for name in _names(node, 1)}
    for layer in network.layers:
        name = str(layer.weight.target)
        weight = network.tensor(name)
        made[name] = (torch.randn(weight.shape, generator=generator) * _deviation(layer.node, weight)).to(weight)
        made |= {bias: torch.zeros_like(network.tensor(bias)) for bias in _names(layer.node, 2)}
    for name, old in network.constants().items():
        if name not in made and network.is_weight(name) and old.squeeze().ndim > 1:
            made[name] = (torch.randn(old.shape, generator=generator) * SPREAD).to(old)
    for name, new in made.items():
        edit.set_constant(network.graph_module, name, new, weight=network.is_weight(name))
    edit.finish(network.graph_module)
    return network


def _names(node: Node, position: int) -> list[str]:
    """Return the name of the constant that is an argument of a node, if it is one."""
    source = constant_source(node.args[position]) if len(node.args) > position else None
    return [] if source is None else [str(source.target)]


def _deviation(node: Node, weight: Tensor) -> float:
    """Return the deviation of a layer's fresh weight: gain over the root of how many values meet in an output."""
    if kind(node) == "conv_transpose":  # (in, out / groups, *kernel): each output meets a part of the kernel
        stride = node.args[3] if len(node.args) > 3 and isinstance(node.args[3], list | tuple) else (1,)
        steps = [int(n) for n in stride] * (weight.ndim - 2 if len(stride) == 1 else 1)  # type: ignore[arg-type]
        fan = weight.shape[0] // groups(node) * max(1.0, math.prod(weight.shape[2:]) / math.prod(steps))
    else:
        fan = weight[0].numel()
    following = [kind(user) for user in _following(node)]
    return max((GAINS.get(name, 1.0) for name in following), default=1.0) / math.sqrt(max(fan, 1))


def _following(node: Node) -> list[Node]:
    """Return what reads a layer, behind norms."""
    found: list[Node] = []
    for user in node.users:
        found += _following(user) if kind(user) in NORMS else [user]
    return found
