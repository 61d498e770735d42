"""Norms that look at each image, and the fixed line per channel that can stand in their place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, is_weighted, kind
from microtome.graph.structure.channels import free, readers
from microtome.graph.structure.layernorm import fold_affine
from microtome.graph.structure.scaling import network_constant
from microtome.graph.watching.moments import named_arguments

KINDS = {"instance_norm": "instance", "group_norm": "group", "layer_norm": "layer"}
EPSILON = 1e-5  # of the batch norms that are put in


@dataclass(frozen=True, eq=False)
class Line:
    """scale · x + shift per channel, and the mean and variance of x; all of shape (C,)."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class Blend:
    """share · norm(x) + (1 - share) · line(x).

    Attributes:
        node: the sum.
        line: the batch norm, or the sum of a product and a constant, that computes the line.
        share: of the norm.
    """

    node: Node
    line: Node
    share: float


@dataclass(frozen=True, eq=False)
class Norm:
    """An instance, group or layer norm.

    Attributes:
        name: of its scale, without `.weight`; without one, of the layer that it reads, with `.norm`. Unique.
        kind: `instance`, `group`, or `layer` over the last axis.
        node: itself.
        channels: how many it has, each with a scale and a shift of its own.
        blend: what is left of it, where a line has taken a part of its place.
    """

    name: str
    kind: str
    node: Node
    channels: int
    blend: Blend | None

    @property
    def value(self) -> Node:
        """What it reads."""
        value = self.node.args[0]
        assert isinstance(value, Node)
        return value

    def rows(self, x: Tensor) -> Tensor:
        """Return what it reads or makes as (C, n)."""
        return x.movedim(x.ndim - 1 if self.kind == "layer" else 1, 0).flatten(1)


def norms(network: Network) -> tuple[Norm, ...]:
    """Return the norms that a line per channel can stand for, in order.

    Instance norms with running statistics, and layer norms over several axes, are not among them.
    """
    found: list[Norm] = []
    seen = Counter[str]()
    for node in network.graph_module.graph.nodes:
        norm = _norm(node, len(found))
        if norm is not None:
            seen[norm.name] += 1
            name = norm.name if seen[norm.name] == 1 else f"{norm.name}#{seen[norm.name]}"
            found.append(replace(norm, name=name))
    return tuple(found)


def put_line(network: Network, norm: Norm, line: Line, share: float) -> None:
    """Put share · norm + (1 - share) · line in a norm's place; where no share is left, the norm goes.

    The line is a batch norm with the mean and variance of what it reads, so that it can be folded into the layer
    before, and trained. On the last axis, where no batch norm fits, it goes into the linear layers behind; if other
    operators read it too, into the linear layer before; and else it is a product and a sum.

    Args:
        network: to edit.
        norm: of this network.
        line: over what the norm reads.
        share: of the norm that is left, 0 to 1.
    """
    graph = network.graph_module.graph
    if share == 0 and norm.kind == "layer" and _taken_in(network, norm, line):
        return
    node = norm.blend.line if norm.blend is not None else _new_line(network, norm)
    _set_line(network, norm, node, line)
    value = norm.node.meta["val"]
    end = norm.node if norm.blend is None else norm.blend.node
    if share == 0:
        end.replace_all_uses_with(node)
        return
    if norm.blend is not None:
        own, others = norm.blend.node.args[:2]
        own.args, others.args = (norm.node, share), (node, 1 - share)  # type: ignore[union-attr]
        return
    with graph.inserting_after(node):
        total = graph.call_function(aten.add.Tensor, (norm.node, node))
    norm.node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    with graph.inserting_before(total):
        total.args = tuple(
            graph.call_function(aten.mul.Tensor, (part, factor))
            for part, factor in ((norm.node, share), (node, 1 - share))
        )
    for made in (total, *total.all_input_nodes):
        made.meta["val"] = value


def current_line(network: Network, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the line of a norm's blend."""
    assert norm.blend is not None
    node = norm.blend.line
    if norm.kind == "layer":
        product, shift = node.args[:2]
        return network_constant(network, product.args[1]), network_constant(network, shift)  # type: ignore[union-attr]
    weight, bias, mean, variance = (network_constant(network, argument) for argument in node.args[1:5])
    scale = weight * torch.rsqrt(variance + EPSILON)
    return scale, bias - scale * mean


def _norm(node: Node, position: int) -> Norm | None:
    if kind(node) not in KINDS or not isinstance(node.args[0], Node):
        return None
    named, shape = named_arguments(node), node.args[0].meta["val"].shape
    channels = shape[-1 if kind(node) == "layer_norm" else 1]
    if (
        not isinstance(channels, int)
        or (kind(node) == "instance_norm" and not named["use_input_stats"])
        or (kind(node) == "layer_norm" and len(named["normalized_shape"]) != 1)
    ):
        return None
    scale = constant_source(named["weight"])
    if scale is not None:
        name = str(scale.target).removesuffix(".weight")
    elif is_weighted(node.args[0]):
        name = f"{str(constant_source(node.args[0].args[1]).target).removesuffix('.weight')}.norm"  # type: ignore[union-attr]
    else:
        name = f"norm_{position}"
    return Norm(name, KINDS[kind(node)], node, channels, _blend(node))


def _blend(norm: Node) -> Blend | None:
    """Return the sum that a norm is a part of, if `put_line` made it."""
    own = next(iter(norm.users)) if len(norm.users) == 1 else None
    if own is None or not _weighs(own) or len(own.users) != 1:
        return None
    total = next(iter(own.users))
    other = total.args[1] if total.target is aten.add.Tensor and total.args[0] is own else None
    if not isinstance(other, Node) or not _weighs(other) or float(other.args[1]) != 1 - float(own.args[1]):  # type: ignore[arg-type]
        return None
    return Blend(total, other.args[0], float(own.args[1]))  # type: ignore[arg-type]


def _weighs(node: Node) -> bool:
    return node.target is aten.mul.Tensor and isinstance(node.args[0], Node) and isinstance(node.args[1], float)


def _new_line(network: Network, norm: Norm) -> Node:
    """Put in the operators of a line, with constants that say nothing yet, behind the norm."""
    module, graph = network.graph_module, network.graph_module.graph
    blank = torch.ones(norm.channels, device=network.device)
    held = {"weight": True, "bias": True, "running_mean": False, "running_var": False}
    if norm.kind == "layer":
        held = {"weight": True, "bias": True}
    constants = [
        edit.add_constant(module, f"{norm.name}.line.{name}", blank, weight=weight) for name, weight in held.items()
    ]
    with graph.inserting_after(norm.node):
        if norm.kind != "layer":
            arguments: tuple[Any, ...] = (norm.value, *constants, False, 0.1, EPSILON, True)
            node = graph.call_function(aten.batch_norm.default, arguments)
        else:
            product = graph.call_function(aten.mul.Tensor, (norm.value, constants[0]))
            product.meta["val"] = norm.node.meta["val"]
            with graph.inserting_after(product):
                node = graph.call_function(aten.add.Tensor, (product, constants[1]))
    node.meta["val"] = norm.node.meta["val"]
    return node


def _set_line(network: Network, norm: Norm, node: Node, line: Line) -> None:
    module = network.graph_module
    if norm.kind == "layer":
        product = node.args[0]
        assert isinstance(product, Node)
        edit.own_constant(module, product, 1, line.scale)
        edit.own_constant(module, node, 1, line.shift)
        return
    weight = line.scale * torch.sqrt(line.variance + EPSILON)
    edit.own_constant(module, node, 1, weight)
    edit.own_constant(module, node, 2, line.shift + line.scale * line.mean)
    edit.own_constant(module, node, 3, line.mean, weight=False)
    edit.own_constant(module, node, 4, line.variance, weight=False)


def _taken_in(network: Network, norm: Norm, line: Line) -> bool:
    """Put the line of a layer norm into its neighbours; return whether one could take it."""
    end = norm.node if norm.blend is None else norm.blend.node
    behind = readers(end, end.meta["val"].ndim - 1, torch.arange(norm.channels), shifts=True)
    if behind:
        fold_affine(network, behind, line.scale, line.shift)
        end.replace_all_uses_with(norm.value)
        return True
    layer = norm.value
    ours = {norm.node} if norm.blend is None else {norm.node, norm.blend.line.args[0]}
    if kind(layer) != "linear" or not is_weighted(layer) or not free(layer) or set(layer.users) != ours:
        return False
    source = constant_source(layer.args[1])
    assert source is not None
    bias = network_constant(network, layer.args[2]) if len(layer.args) > 2 and layer.args[2] is not None else 0
    edit.own_constant(network.graph_module, layer, 1, line.scale[:, None] * network_constant(network, layer.args[1]))
    name = str(source.target).removesuffix(".weight")
    edit.set_bias(network.graph_module, layer, line.scale * bias + line.shift, name)
    end.replace_all_uses_with(layer)
    return True
