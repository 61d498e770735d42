"""Narrower copies of a network: of each channel group, the first units or those with the largest weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from microtome.core.penalties import Part, unit_lengths
from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.graph.structure.groups import ChannelGroup, channel_groups
from microtome.graph.structure.removal import keep_units


def free_groups(network: Network) -> tuple[ChannelGroup, ...]:
    """Return the groups of channels that can become narrower.

    Raises:
        OptionError: there is none.
    """
    found = tuple(group for group in channel_groups(network) if group.reason is None and group.kind == "channels")
    if not found:
        raise OptionError("no layer of this network can be made narrower.", "Take another student.")
    return found


def importance(network: Network, group: ChannelGroup) -> Tensor:
    """Return the length of all weights that make each unit of a group: (units,)."""
    written = [member for member in group.members if member.role == "writes"]
    return unit_lengths([Part(network.tensor(m.constant), m.axis, m.units) for m in written])


def units_at(group: ChannelGroup, width: float, order: Tensor | None = None, *, multiple: int = 1) -> Tensor:
    """Return the units of a group that stay at a width: a share of each of its parts, in their own order, int64.

    Args:
        group: to be narrowed.
        width: share that stays, above 0 and at most 1.
        order: importance of each unit, (units,); None keeps the first.
        multiple: how many stay in each part is a multiple of this where the part is wide enough; at least one stays.
    """
    size = group.units // group.parts
    count = min(size, max(1, round(width * size)))
    if multiple <= size:
        count = min(size, max(multiple, round(count / multiple) * multiple))
    kept = []
    for part in range(group.parts):
        start = part * size
        first = torch.arange(count) if order is None else order[start : start + size].topk(count).indices
        kept.append(start + first.cpu().sort().values)
    return torch.cat(kept)


def narrowed(
    network: Network, widths: float | Mapping[str, float], *, by_size: bool = False, multiple: int = 1
) -> Network:
    """Return a narrower network.

    Args:
        network: in float.
        widths: share of the units that stay in each group that can be narrowed; or by the group's name, 1 where it is
            not named.
        by_size: keep the units with the largest weights, instead of the first.
        multiple: see `units_at`.

    Raises:
        OptionError: nothing can be narrowed.
    """
    kept = {}
    for group in free_groups(network):
        width = widths.get(group.name, 1.0) if isinstance(widths, Mapping) else widths
        if width < 1:
            order = importance(network, group) if by_size else None
            kept[group.name] = units_at(group, width, order, multiple=multiple)
    return keep_units(network, kept)
