"""Units of a group in another order: the network computes the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.structure.groups import ChannelGroup, Member


def permutable(group: ChannelGroup, aliases: Mapping[str, str]) -> bool:
    """Whether units of a group can change places: each may go alone, and all of them lie wherever one does.

    Args:
        group: of a network.
        aliases: for each constant the first name of the same tensor (`Flow.aliases`).
    """
    if group.reason is not None or group.parts > 1 or group.kind != "channels":
        return False
    names = list(aliases.values())
    for member in group.members:
        counts = torch.bincount(member.units[member.units >= 0], minlength=group.units)
        if bool((counts != counts[0]).any()) or names.count(member.constant) > 1:
            return False
    return True


def permute_units(network: Network, group: ChannelGroup, order: Tensor) -> None:
    """Put a group's units into another order, in all constants, in place.

    Args:
        network: to edit.
        group: of it, `permutable`.
        order: numbers of units, (U,): the first in it becomes unit 0.
    """
    for member in group.members:
        old = network.tensor(member.constant)
        value = old.index_select(member.axis, moved(member, group, order).to(old.device))
        edit.set_constant(network.graph_module, member.constant, value, weight=network.is_weight(member.constant))
        for node in network.graph_module.graph.find_nodes(op="get_attr"):
            if node.target == member.constant:
                node.meta["val"] = value


def moved(member: Member, group: ChannelGroup, order: Tensor) -> Tensor:
    """Return for each place along a member's axis the place whose content comes there."""
    places = torch.argsort(member.units, stable=True)
    places = places[int((member.units < 0).sum()) :].reshape(group.units, -1)  # of each unit
    index = torch.arange(len(member.units))
    index[places.flatten()] = places[order].flatten()
    return index
