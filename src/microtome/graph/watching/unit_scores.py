"""How much the units of channel groups matter: gathered from weights, gradients, and what flows on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core import unit_importance
from microtome.errors import DataError
from microtome.graph.network import Batch, Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.watching.gradients import GradientSums, Objective, gradients
from microtome.graph.watching.observe import Unquantized

if TYPE_CHECKING:
    from microtome.graph.structure.groups import ChannelGroup, Member

MOST_MAPS = 8  # images of a batch whose ranks are taken
NORM_SCALES = {"batch_norm": 1, "instance_norm": 1, "group_norm": 2, "layer_norm": 2}


def weight_rows(network: Network, group: ChannelGroup) -> Tensor:
    """Return what makes each unit: all weights of the rows that write it; (units, values).

    Units that have other numbers of rows than the rest are filled up with zeros.
    """
    parts = []
    for member in _members(group, "writes"):
        rows = network.tensor(member.constant).float().movedim(member.axis, 0).flatten(1)
        parts.append(_by_unit(rows, member.units, group.units))
    return torch.cat(parts, 1)


def _by_unit(rows: Tensor, units: Tensor, count: int) -> Tensor:
    """Return the rows of each unit one behind the other; (units, most rows of a unit * values)."""
    units = units.to(rows.device)
    held = (units >= 0).nonzero()[:, 0]
    order = held[units[held].argsort(stable=True)]
    sizes = torch.bincount(units[held], minlength=count)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(order), device=rows.device) - starts.repeat_interleave(sizes)
    found = rows.new_zeros(count, int(sizes.max()), rows.shape[1])
    found[units[order], place] = rows[order]
    return found.flatten(1)


def norm_scales(network: Network, group: ChannelGroup) -> Tensor | None:
    """Return the magnitude of the norms' scales behind each unit, their mean where there are several; (units,).

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.
    None where no norm with a scale follows.
    """
    names = set()
    for node in network.graph_module.graph.nodes:
        place = NORM_SCALES.get(kind(node))
        source = constant_source(node.args[place]) if place is not None and len(node.args) > place else None
        if source is not None:
            names |= _same(network, str(source.target))
    scales = [m for m in _members(group, "scales") if m.constant in names]
    if not scales:
        return None
    sums, counts = torch.zeros(group.units), torch.zeros(group.units)
    for member in scales:
        values = network.tensor(member.constant).float().abs().flatten().cpu()
        held = member.units >= 0
        sums.index_add_(0, member.units[held], values[held])
        counts.index_add_(0, member.units[held], torch.ones(int(held.sum())))
    return sums / counts.clamp(min=1)


def gate_gradients(
    network: Network, groups: Sequence[ChannelGroup], batches: Iterable[Any], objective: Objective
) -> dict[str, GradientSums]:
    """Return by group what the gradients of gates on its units were over batches; each of shape (units,).

    A gate multiplies what all readers see of a unit: its gradient is Σ w ∂L/∂w over the weights that read it. Where
    none reads it (queries and keys), it multiplies what writes it.

    Raises:
        DataError: there are no batches, or a gradient is NaN or infinite.
    """
    gates = {group.name: _members(group, "reads") or _members(group, "writes") for group in groups}
    names = {member.constant for held in gates.values() for member in held}
    sums = {group.name: GradientSums.like(torch.zeros(group.units)) for group in groups}
    counts = {group.name: group.units for group in groups}
    for found in gradients(network, names, batches, objective):
        products = {name: (network.tensor(name) * gradient).cpu() for name, gradient in found.items()}
        for name, held in gates.items():
            slopes = torch.zeros(counts[name])
            for member in held:
                along = products[member.constant].movedim(member.axis, 0).flatten(1).sum(1)
                inside = member.units >= 0
                slopes.index_add_(0, member.units[inside], along[inside])
            sums[name].add(slopes)
    return sums


def output_scores(
    network: Network, groups: Sequence[ChannelGroup], batches: Iterable[Batch], *, by: str, threshold: float
) -> dict[str, Tensor]:
    """Return by group the scores (units,) of what readers see of each unit on images; groups without any are left out.

    Args:
        network: it is not changed.
        groups: to look at.
        batches: (N, C, *S).
        by: `activation`, the share of values above a threshold; or `hrank`, the mean rank of maps, of volumes as
            matrices of their first axis against the others.
        threshold: in root mean squares of all that the reader sees.

    Raises:
        DataError: there are no batches.
    """
    layers = {layer.node: str(layer.weight.target) for layer in network.layers}
    aliases = {alias: name for name in set(layers.values()) for alias in _same(network, name)}
    readers: dict[Node, list[tuple[ChannelGroup, Member]]] = {}
    for group in groups:
        for member in _members(group, "reads"):
            for node, name in layers.items():
                if aliases.get(member.constant) == aliases.get(name):
                    readers.setdefault(node, []).append((group, member))
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}

    def look(node: Node, arguments: tuple[Any, ...], _: Tensor) -> None:
        x = arguments[0].detach()
        if by == "hrank" and (kind(node) == "linear" or x.ndim < 4):
            return  # no maps
        per_channel = _of_channels(node, x, by, threshold).float().cpu()
        for group, member in readers[node]:
            units = member.units.repeat(len(per_channel) // len(member.units))
            inside = units >= 0
            held = sums.setdefault(group.name, torch.zeros(group.units))
            held.index_add_(0, units[inside], per_channel[inside])
            seen = counts.setdefault(group.name, torch.zeros(group.units))
            seen.index_add_(0, units[inside], torch.ones(int(inside.sum())))

    run: Callable[[Batch], None] = Unquantized(network, readers, look)
    seen = False
    for batch in batches:
        run(batch)
        seen = True
    if not seen:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    return {name: total / counts[name].clamp(min=1) for name, total in sums.items()}


def _of_channels(node: Node, x: Tensor, by: str, threshold: float) -> Tensor:
    """Return one score for each input channel of a layer."""
    linear = kind(node) == "linear"
    if by == "activation":
        limit = threshold * float(x.float().square().mean().sqrt())
        return unit_importance.activity(x.movedim(-1 if linear else 1, 0).flatten(1), limit)
    return unit_importance.map_rank(x[:MOST_MAPS].flatten(3))


def _members(group: ChannelGroup, role: str) -> list[Member]:
    return [member for member in group.members if member.role == role]


def _same(network: Network, name: str) -> set[str]:
    """Return all names of the tensor that has this one."""
    where = network.tensor(name).data_ptr()
    return {other for other, value in network.constants().items() if value.data_ptr() == where}
