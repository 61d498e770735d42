"""Which layer may put which channels into an order of its own."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.graph.network import Layer, Network
from microtome.graph.structure.groups import ChannelGroup, analyse
from microtome.graph.structure.permuting import permutable


@dataclass(frozen=True, eq=False)
class Side:
    """How the channels of a layer come into order.

    Attributes:
        behind: the group of its outputs, where that can be reordered; None where they stay as they are.
        before: likewise for its inputs.
        orders_outputs: it is this layer that says how.
        orders_inputs: likewise; else they have an order by now (`fixed`), or are gathered.
        fixed: see there.
    """

    behind: ChannelGroup | None
    before: ChannelGroup | None
    orders_outputs: bool
    orders_inputs: bool
    fixed: bool


class Orders:
    """Which channels are in whose order: one layer can have it for its outputs, or several for their inputs."""

    def __init__(self, network: Network) -> None:
        """Start with no order taken."""
        analysis = analyse(network)
        self._reads: dict[str, ChannelGroup] = {}
        self._writes: dict[str, ChannelGroup] = {}
        self._claimed: dict[str, str] = {}
        for group in analysis.groups:
            if not permutable(group, analysis.flow.aliases):
                continue
            for member in group.members:
                once = len(member.units) == group.units
                if member.role == "reads" and once:
                    self._reads[member.constant] = group
                elif member.role == "writes" and once:
                    self._writes[member.constant] = group

    def claim(self, layer: Layer, *, gather: bool) -> Side | None:
        """Take the groups that a layer reads and writes into its order, as far as nobody has; None if it cannot be."""
        name = str(layer.weight.target)
        before, behind = self._reads.get(name), self._writes.get(name)
        if before is behind:  # a loop: it would need two orders
            before = None
        held = None if before is None else self._claimed.get(before.name)
        if (before is None or held == "written") and not gather:
            return None
        orders_inputs = before is not None and held is None
        if before is not None and held is None:
            self._claimed[before.name] = "read"
        orders_outputs = behind is not None and behind.name not in self._claimed
        if behind is not None:
            self._claimed.setdefault(behind.name, "written")
        fixed = held == "read"
        return Side(behind, before if orders_inputs or fixed else None, orders_outputs, orders_inputs, fixed)
