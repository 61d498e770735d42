"""Removing units: constants are cut, and the numbers in the graph that say how long axes are follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.structure.following.literals import Masks, rewrite
from microtome.graph.structure.groups import Analysis, ChannelGroup, analyse
from microtome.graph.watching.distribution import forget, recall


def keep_units(network: Network, kept: Mapping[str, Sequence[int] | Tensor]) -> Network:
    """Return a network with only some units of some groups left.

    Names of layers and constants, inputs, outputs and the state stay as they are. Constants that several layers share
    stay shared.

    Args:
        network: without quantizers.
        kept: for groups by name, the numbers of the units that stay, in any order; other groups stay whole.

    Raises:
        OptionError: a group that there is not, or that cannot be pruned; units out of range; none left; parts that keep
            unequally many; a quantized network; weights that are stored in a format of their own.
    """
    if any(kind(node) == "quantizer" for node in network.graph_module.graph.nodes):
        raise OptionError("units of a quantized network cannot be removed.", "Prune first, and quantize what is left.")
    network = network.copy()
    analysis = analyse(network)
    known = {group.name: number for number, group in enumerate(analysis.groups)}
    removed = torch.zeros(len(analysis.group_of), dtype=torch.bool)
    for name, units in kept.items():
        if name not in known:
            raise OptionError(f"there is no group {name!r}.", f"Its groups are {', '.join(known)}.")
        stay = _stay(analysis.groups[known[name]], units)
        inside = analysis.group_of == known[name]
        removed[inside] = ~stay[analysis.unit_of[inside]]
    if bool(removed.any()):
        _cut(network, analysis, removed)
    return network


def _stay(group: ChannelGroup, units: Sequence[int] | Tensor) -> Tensor:
    """Return which units of a group stay: bool, (units,)."""
    numbers = torch.as_tensor(units).reshape(-1)
    stay = torch.zeros(group.units, dtype=torch.bool)
    if numbers.dtype == torch.bool or (numbers.numel() and numbers.is_floating_point()):
        raise OptionError(f"the units of {group.name} are not given by their numbers.", "Give whole numbers from 0 on.")
    if not numbers.numel():
        raise OptionError(f"a mask that empties a layer: no unit of {group.name} is left.", "Keep at least one.")
    numbers = numbers.to("cpu", torch.int64)
    if int(numbers.min()) < 0 or int(numbers.max()) >= group.units:
        raise OptionError(
            f"{group.name} has the units 0 to {group.units - 1}, not {int(numbers.min())} to {int(numbers.max())}.",
            "Give numbers of units that it has.",
        )
    stay[numbers] = True
    if bool(stay.all()):
        return stay
    if group.reason is not None:
        raise OptionError(f"the units of {group.name} cannot be removed: {group.reason}.", "Leave this group whole.")
    counts = stay.reshape(group.parts, -1).sum(1)
    left = counts[counts > 0]
    if not bool((left == left[0]).all()):
        raise OptionError(
            f"the {group.parts} parts of {group.name} keep {', '.join(map(str, counts.tolist()))} units.",
            "Keep equally many units of each part.",
        )
    return stay


def _cut(network: Network, analysis: Analysis, removed: Tensor) -> None:
    """Remove units from a network in place."""
    graph_module, masks = network.graph_module, Masks(analysis.flow, removed)
    followed = [
        node for node in graph_module.graph.nodes if node.op == "call_function" and node in analysis.flow.values
    ]
    shapes = {node: _shape(node, masks) for node in followed}
    for node in followed:
        rewrite(node, masks)
    _cut_constants(network, analysis, masks)
    for node, value in shapes.items():
        if recall(node) is not None and not _as_long(node.meta["val"], value):
            forget(node)  # it is said channel by channel
        node.meta["val"] = value
    edit.finish(graph_module)


def _as_long(before: Tensor, after: Tensor) -> bool:
    """Whether all axes whose length is fixed kept it."""
    pairs = zip(before.shape, after.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _shape(node: Node, masks: Masks) -> Any:
    """Return what capture would note of a value: a tensor without content, of the size that is left."""
    value = node.meta["val"]
    if isinstance(value, Tensor):
        return _resized(value, masks.lengths(node))
    parts = [_resized(part, masks.lengths(node, place)) for place, part in enumerate(value)]
    return type(value)(parts) if type(value) in (list, tuple) else tuple(parts)


def _resized(value: Tensor, lengths: Mapping[int, int]) -> Tensor:
    if not lengths:
        return value
    return value.new_empty([lengths.get(axis, size) for axis, size in enumerate(value.shape)])


def _cut_constants(network: Network, analysis: Analysis, masks: Masks) -> None:
    """Take rows, columns and elements out of all constants; one tensor under several names stays one."""
    graph_module, flow = network.graph_module, analysis.flow
    axes: dict[str, dict[int, Tensor]] = {}
    for fact in flow.facts:
        axes.setdefault(fact.constant, {})[fact.axis] = _index(masks.stay(fact.labels), len(fact.labels))
    for name, labels in flow.constants().items():
        mask = masks.stay(labels)
        for axis, size in enumerate(mask.shape):
            if size > 1:
                kept = mask.movedim(axis, 0).reshape(size, -1).any(1)
                axes.setdefault(name, {})[axis] = _index(kept, size)
    for name, cuts in axes.items():
        old = network.tensor(name)
        new = old
        for axis, index in cuts.items():
            new = new.index_select(axis, index.to(old.device))
        if new.shape == old.shape:
            continue
        names = [other for other, first in flow.aliases.items() if first == name]
        if any(other in network.formats for other in names):
            raise OptionError(
                f"the weight {name} is stored in a format of its own.", "Prune first, and encode what is left."
            )
        weight = network.is_weight(name)
        value = nn.Parameter(new.contiguous(), requires_grad=False) if weight else new.contiguous()
        for other in names:
            _put(graph_module, other, value)
        for node in graph_module.graph.find_nodes(op="get_attr"):
            if node.target in names:
                node.meta["val"] = value.detach()


def _index(mask: Tensor, size: int) -> Tensor:
    return mask.expand(size).nonzero().reshape(-1)


def _put(graph_module: GraphModule, name: str, value: Tensor) -> None:
    """Put a tensor in place of another under a name; it is not copied, so that names may share it."""
    path, _, last = name.rpartition(".")
    owner = graph_module.get_submodule(path)
    delattr(owner, last)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(last, value)
    else:
        owner.register_buffer(last, value)
