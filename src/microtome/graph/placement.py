"""Where quantizers go, given what the target can run in integers.

A quantizer stands on every edge into a layer that the target runs in integers. Where the value comes out of an
operator that works on integers as they are (a concatenation, a max-pool), the quantizer moves before it, so that memory
traffic is in integers; values that meet in a concatenation share one grid, and so do all uses of one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from microtome.graph.network import Layer, Network
from microtome.graph.operators import kind, spatial_dims
from microtome.types import Capabilities, OperatorSupport, QType


@dataclass(frozen=True)
class Site:
    """Values that share one activation grid.

    Attributes:
        name: the first layer that reads it.
        qtype: the grid's format.
        edges: for each value the nodes that shall read its quantized form.
    """

    name: str
    qtype: QType
    edges: Mapping[Node, tuple[Node, ...]]


def supported_layers(network: Network, capabilities: Capabilities) -> tuple[tuple[Layer, OperatorSupport], ...]:
    """Return the layers that the target runs in integers, with how."""
    found = []
    for layer in network.layers:
        support = capabilities.operators.get(layer.op)
        dims = spatial_dims(layer.node)
        if support is not None and (dims == 0 or dims in support.spatial_dims):
            found.append((layer, support))
    return tuple(found)


def place(network: Network, capabilities: Capabilities, skip: frozenset[str] = frozenset()) -> tuple[Site, ...]:
    """Decide where activation quantizers stand.

    Args:
        network: a network without quantizers.
        capabilities: of the target.
        skip: names of layers that shall stay in float.
    """
    wanted: dict[Node, dict[Node, QType]] = {}
    names: dict[Node, str] = {}
    groups = _Groups()
    groups.fixed = {layer.node for layer, support in supported_layers(network, capabilities) if support.directly}
    for layer, support in supported_layers(network, capabilities):
        value = layer.node.args[0]
        if layer.name in skip or not isinstance(value, Node):
            continue
        wanted.setdefault(value, {})[layer.node] = support.activation
        names.setdefault(value, layer.name)
        if support.output:
            result = _behind_activation(layer.node)
            names.setdefault(result, layer.name)
            for user in result.users:
                wanted.setdefault(result, {}).setdefault(user, support.activation)
    _move_up(network, wanted, names, capabilities, groups)
    members: dict[Node, list[Node]] = {}
    for value in network.graph_module.graph.nodes:
        if value in wanted:
            members.setdefault(groups.root(value), []).append(value)
    sites = []
    for values in members.values():
        qtypes = [qtype for value in values for qtype in wanted[value].values()]
        symmetric = [q for q in qtypes if q.symmetric]
        edges = {value: tuple(wanted[value]) for value in values}
        name = min((names[v] for v in values), key=[layer.name for layer in network.layers].index)
        sites.append(Site(name, (symmetric or qtypes)[0], edges))
    return tuple(sites)


def _move_up(
    network: Network,
    wanted: dict[Node, dict[Node, QType]],
    names: dict[Node, str],
    capabilities: Capabilities,
    groups: _Groups,
) -> None:
    """Move quantizers before transparent operators, last node first; edits `wanted`, `names` and `groups`."""
    for node in reversed(network.graph_module.graph.nodes):
        readers = wanted.get(node)
        if readers is None or kind(node) not in capabilities.transparent or set(node.users) != set(readers):
            continue
        if groups.fixed & set(readers):
            continue
        inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if any(n.op == "get_attr" for n in inputs):
            continue
        qtype = next((q for q in readers.values() if q.symmetric), next(iter(readers.values())))
        for value in inputs:
            wanted.setdefault(value, {})[node] = qtype
            names.setdefault(value, names[node])
            groups.join(value, node)
        del wanted[node]


def _behind_activation(node: Node) -> Node:
    """Return the clamp that alone reads a layer and that runtimes fuse with it, or the layer itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and kind(users[0]) in ("relu", "clamp") else node


class _Groups:
    """Union-find over graph nodes; `fixed` are readers whose quantizer must not move."""

    def __init__(self) -> None:
        self.fixed: set[Node] = set()
        self._parent: dict[Node, Node] = {}

    def root(self, node: Node) -> Node:
        while self._parent.get(node, node) is not node:
            node = self._parent[node]
        return node

    def join(self, one: Node, other: Node) -> None:
        self._parent[self.root(one)] = self.root(other)
