"""Small changes to a graph that methods are built from. They edit in place: call them on a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node

from microtome.graph.network import Layer, Network
from microtome.graph.operators import aten, constant_source
from microtome.graph.program import drop_unused
from microtome.types import QParams


def add_constant(graph_module: GraphModule, name: str, tensor: Tensor, *, weight: bool = True) -> Node:
    """Add a tensor under an attribute name made from `name` and return its `get_attr` node, first in the graph."""
    name = unique_name(graph_module, name)
    set_constant(graph_module, name, tensor, weight=weight)
    graph = graph_module.graph
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        node = graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def set_constant(graph_module: GraphModule, name: str, tensor: Tensor, *, weight: bool = True) -> None:
    """Store a tensor as parameter (`weight`) or buffer under a dotted name, in place of what is there."""
    *path, last = name.split(".")
    owner: nn.Module = graph_module
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, last):
        delattr(owner, last)
    if weight:
        owner.register_parameter(last, nn.Parameter(tensor.detach().clone(), requires_grad=False))
    else:
        owner.register_buffer(last, tensor.detach().clone())


def unique_name(graph_module: GraphModule, name: str) -> str:
    """Return `name`, with a number behind it if the module already has such an attribute.

    Where the path leads through a tensor (a weight without a module of its own), its dots become underscores.
    """
    parts = name.split(".")
    owners = (_get(graph_module, ".".join(parts[:count])) for count in range(1, len(parts)))
    if any(owner is not None and not isinstance(owner, nn.Module) for owner in owners):
        name = name.replace(".", "_")
    candidate, count = name, 1
    while _has(graph_module, candidate):
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def own_constant(graph_module: GraphModule, user: Node, position: int, tensor: Tensor, *, weight: bool = True) -> None:
    """Give one user of a constant a new value, without changing it for other users.

    Args:
        graph_module: the graph to edit.
        user: the node that reads the constant.
        position: which argument of `user` it is.
        tensor: the new value.
        weight: whether it is a parameter, or a buffer such as a scale.
    """
    source = constant_source(user.args[position])
    assert source is not None
    if len(source.users) == 1:
        set_constant(graph_module, str(source.target), tensor, weight=weight)
        source.meta["val"] = tensor
        return
    node = add_constant(graph_module, str(source.target), tensor, weight=weight)
    args = list(user.args)
    args[position] = node
    user.args = tuple(args)


def set_weight(graph_module: GraphModule, layers: Sequence[Layer], weight: Tensor) -> None:
    """Give the quantizers of some layers' common weight a new value, without changing it for others.

    Args:
        graph_module: the graph to edit.
        layers: that read the same weight, each behind a quantizer; at least one.
        weight: the new value.
    """
    source = layers[0].weight
    readers = [layer.node.args[1] for layer in layers]
    if set(source.users) <= set(readers):
        set_constant(graph_module, str(source.target), weight)
        source.meta["val"] = weight
        return
    first, *others = (reader for reader in readers if isinstance(reader, Node))
    own_constant(graph_module, first, 0, weight)
    for other in others:
        other.replace_input_with(source, first.args[0])  # type: ignore[arg-type]


def set_bias(graph_module: GraphModule, layer: Node, bias: Tensor, name: str) -> None:
    """Give a layer a bias, new or in place of the one it has."""
    if len(layer.args) > 2 and layer.args[2] is not None:
        own_constant(graph_module, layer, 2, bias)
        return
    node = add_constant(graph_module, f"{name}.bias", bias)
    args = list(layer.args)
    layer.args = (*args[:2], node, *args[3:])


def shift_bias(network: Network, layer: Layer, shift: Tensor) -> None:
    """Add a shift of shape (output channels,) to a layer's bias; a layer without one gets it as its bias."""
    source = constant_source(layer.node.args[2]) if len(layer.node.args) > 2 else None
    bias = shift if source is None else network.tensor(str(source.target)) + shift
    set_bias(network.graph_module, layer.node, bias, layer.name)


@dataclass(frozen=True, eq=False)
class Link:
    """One of the layers that stand in place of another.

    Attributes:
        name: behind the replaced layer's, such as `first`.
        target: the operator: (x, weight, bias, *settings) → output.
        weight: of the layer.
        bias: likewise, if it has one.
        settings: what follows the bias among the operator's arguments, such as stride and padding.
    """

    name: str
    target: Callable[..., Any]
    weight: Tensor
    bias: Tensor | None = None
    settings: tuple[Any, ...] = ()


def replace_layer(graph_module: GraphModule, layer: Layer, chain: Sequence[Link]) -> Node:
    """Put a chain of layers in place of one, and return the last one's node. Call `finish` when all is done.

    Constants are named `LAYER.LINK.weight` and `LAYER.LINK.bias`. Who read the layer reads the chain's output.

    Args:
        graph_module: the graph to edit.
        layer: without quantizers.
        chain: at least one; the output's shape is that of the layer.
    """
    value = layer.node.args[0]
    assert isinstance(value, Node)
    for link in chain:
        weight = add_constant(graph_module, f"{layer.name}.{link.name}.weight", link.weight)
        given = None if link.bias is None else add_constant(graph_module, f"{layer.name}.{link.name}.bias", link.bias)
        with graph_module.graph.inserting_before(layer.node):
            node = graph_module.graph.call_function(link.target, (value, weight, given, *link.settings))
        if link is chain[-1]:  # what is known of the layer's output is known of this one's, and of no other's
            node.meta.update(layer.node.meta)
        else:
            node.meta["val"] = _imagined(link, value.meta["val"])
        value = node
    layer.node.replace_all_uses_with(value)
    graph_module.graph.erase_node(layer.node)
    return value


def _imagined(link: Link, x: Tensor) -> Tensor:
    """Return a layer's output as far as its shape goes: what capture left of its input has no values either."""
    mode = x.fake_mode if isinstance(x, FakeTensor) else FakeTensorMode()
    given = (x, link.weight, link.bias)
    with mode:
        like = [v if v is None or isinstance(v, FakeTensor) else mode.from_tensor(v) for v in given]
        output: Tensor = link.target(*like, *link.settings)
    return output


def insert_quantizer(graph_module: GraphModule, value: Node, users: list[Node], qparams: QParams, name: str) -> Node:
    """Put a fake-quantizer on the edges from `value` to `users` and return its node.

    Per-channel grids keep scale and zero point as constants `NAME_scale`, `NAME_zero_point`.
    """
    qtype = qparams.qtype
    graph = graph_module.graph
    if qtype.axis is None:
        with graph.inserting_after(value):
            quantizer = graph.call_function(
                aten.fake_quantize_per_tensor_affine.default,
                (value, float(qparams.scale), int(qparams.zero_point), qtype.qmin, qtype.qmax),
            )
    else:
        scale = add_constant(graph_module, f"{name}_scale", qparams.scale, weight=False)
        zero_point = add_constant(graph_module, f"{name}_zero_point", qparams.zero_point, weight=False)
        with graph.inserting_before(users[0]):
            quantizer = graph.call_function(
                aten.fake_quantize_per_channel_affine.default,
                (value, scale, zero_point, qtype.axis, qtype.qmin, qtype.qmax),
            )
    if isinstance(value.meta.get("val"), Tensor):
        quantizer.meta["val"] = value.meta["val"]
    for user in users:
        user.replace_input_with(value, quantizer)
    return quantizer


def set_grid(graph_module: GraphModule, quantizer: Node, qparams: QParams) -> None:
    """Give a quantizer node another grid; per channel stays per channel.

    Args:
        graph_module: the graph to edit.
        quantizer: the node.
        qparams: scale and zero point of shape (), or (C,) where the node is per channel.
    """
    qtype = qparams.qtype
    if quantizer.target is aten.fake_quantize_per_tensor_affine.default:
        grid = (float(qparams.scale), int(qparams.zero_point))
        quantizer.args = (quantizer.args[0], *grid, qtype.qmin, qtype.qmax)
        return
    value, _, _, axis, *_ = quantizer.args
    own_constant(graph_module, quantizer, 1, qparams.scale, weight=False)
    own_constant(graph_module, quantizer, 2, qparams.zero_point, weight=False)
    quantizer.args = (value, *quantizer.args[1:3], axis, qtype.qmin, qtype.qmax)


def finish(graph_module: GraphModule) -> None:
    """Drop what is no longer used, check the graph and compile it anew."""
    graph_module.graph.eliminate_dead_code()
    drop_unused(graph_module)
    graph_module.graph.lint()
    graph_module.recompile()


def _has(module: nn.Module, name: str) -> bool:
    return _get(module, name) is not None


def _get(module: nn.Module, name: str) -> object:
    """Return an attribute by its dotted name; None if there is none."""
    value: object = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
