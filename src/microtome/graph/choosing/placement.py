"""Where quantizers go, given what the target can run in integers.

A quantizer stands on every edge into a layer that the target runs in integers. Where the value comes out of an
operator that works on integers as they are (a concatenation, a max-pool), the quantizer moves before it, so that memory
traffic is in integers; values that meet in a concatenation share one grid, and so do all uses of one value. Where
another reader needs a much finer grid of a value than the concatenation it also goes to, there are two grids in a row:
the concatenation rounds anew what that reader sees, and the value itself is in memory once, in integers.

Targets that want integers from end to end (`Capabilities.integers`) get a quantizer on every value that passes between
such operators, the network's input and output among them; what an activation is fused with has none before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import Node

from microtome.graph.network import Layer, Network
from microtome.graph.operators import kind, spatial_dims
from microtome.types import Bits, Capabilities, OperatorSupport, QType

# A grid so many times wider than a value needs costs it 2 dB of signal to noise.
WIDER = 1.25
# What takes a clamp behind it into its own kernel, beside layers.
FUSED = frozenset({"add", "sub", "mul"})
# What may stand between a layer and the sum that takes its output up.
PASSED = frozenset({"batch_norm", "relu", "clamp", "leaky_relu", "prelu", "identity"})


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


@dataclass(frozen=True)
class IntegerReader:
    """A residual sum or a norm that could read integers from the layer before it.

    Attributes:
        node: the sum or norm.
        layer: name of the layer.
        values: what would be quantized.
        qtype: in which format.
    """

    node: Node
    layer: str
    values: tuple[Node, ...]
    qtype: QType


Widths = Mapping[str, Bits]
"""Widths of layers, by name; layers that are missing get the target's own."""


def supported_layers(
    network: Network, capabilities: Capabilities, widths: Widths | None = None
) -> tuple[tuple[Layer, OperatorSupport], ...]:
    """Return the layers that the target runs in integers, with how."""
    found = []
    for layer in network.layers:
        support = capabilities.operators.get(layer.op)
        dims = spatial_dims(layer.node)
        if support is not None and (dims == 0 or dims in support.spatial_dims):
            found.append((layer, support.at(widths[layer.name]) if widths and layer.name in widths else support))
    return tuple(found)


def ends(network: Network) -> frozenset[str]:
    """Return the names of the layers that no other layer stands before, and of those that none stands behind."""
    layers = {layer.node: layer.name for layer in network.layers}
    behind, before = set[Node](), set[Node]()  # nodes with a layer upstream; nodes with a layer downstream
    nodes = list(network.graph_module.graph.nodes)
    for node in nodes:
        if any(value in layers or value in behind for value in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user in layers or user in before for user in node.users):
            before.add(node)
    return frozenset(name for node, name in layers.items() if node not in behind or node not in before)


def readers(network: Network, capabilities: Capabilities) -> tuple[IntegerReader, ...]:
    """Return what could read integers beside layers: sums of two images of one size, of which one comes from a layer
    (perhaps through a norm and an activation), and norms right behind a layer.
    """
    layers = {layer.node: layer.name for layer, _ in supported_layers(network, capabilities)}
    found = []
    for node in network.graph_module.graph.nodes:
        qtype, values = capabilities.readers.get(kind(node)), _tensor_inputs(node)
        if qtype is None or not values or values[0].meta["val"].ndim < 4:
            continue
        if kind(node) == "add":
            if len(values) != 2 or len({str(v.meta["val"].shape) for v in values}) > 1:
                continue
            producers = [layers[p] for p in map(_producer, values) if p in layers]
        else:
            values = values[:1]
            producers = [layers[v] for v in values if v in layers and len(v.users) == 1]
        if producers:
            found.append(IntegerReader(node, producers[-1], tuple(values), qtype))
    return tuple(found)


def rule_of_thumb(network: Network, capabilities: Capabilities) -> frozenset[str]:
    """Return the names of the readers that had better read integers, as far as that can be said without measuring.

    Sums whose values both are integers anyway (a layer's own output, perhaps behind a clamp; or what an integer layer
    reads too), and whose result goes to integer layers and such sums only: the sum is then a part of the layer's
    kernel, as in residual networks whose norms are folded.
    """
    possible = {reader.node: reader for reader in readers(network, capabilities) if kind(reader.node) == "add"}
    layers = {layer.node for layer, _ in supported_layers(network, capabilities)}

    def integer(value: Node) -> bool:
        return (value if value in layers else _clamped(value)) in layers or any(user in layers for user in value.users)

    def stays(node: Node) -> bool:
        users = [u for user in node.users for u in (user.users if kind(user) in ("relu", "clamp") else (user,))]
        return bool(users) and all(u in layers or u in possible for u in users)

    return frozenset(node.name for node, reader in possible.items() if all(map(integer, reader.values)) and stays(node))


def candidates(
    network: Network,
    capabilities: Capabilities,
    skip: frozenset[str] = frozenset(),
    widths: Widths | None = None,
    named: frozenset[str] = frozenset(),
) -> tuple[Node, ...]:
    """Return the values that a quantizer might stand on: calibration watches these, then `place` decides."""
    wanted, _, _ = _wanted(network, capabilities, skip, widths, named)
    found = set(wanted)
    for node in reversed(network.graph_module.graph.nodes):
        if node in found and kind(node) in capabilities.transparent:
            found.update(_tensor_inputs(node))
    return tuple(node for node in network.graph_module.graph.nodes if node in found)


def place(
    network: Network,
    capabilities: Capabilities,
    spans: Mapping[Node, float],
    skip: frozenset[str] = frozenset(),
    widths: Widths | None = None,
    named: frozenset[str] = frozenset(),
) -> tuple[Site, ...]:
    """Decide where activation quantizers stand. What shares a grid gets the widest of the formats asked for.

    Args:
        network: a network without quantizers.
        capabilities: of the target.
        spans: width of the range of each of the `candidates`, zero included.
        skip: names of layers that shall stay in float.
        widths: bits of single layers, where they are not the target's own.
        named: names of the `readers` that shall read integers too.
    """
    wanted, names, fixed = _wanted(network, capabilities, skip, widths, named)
    groups = _Groups()
    for node in reversed(network.graph_module.graph.nodes):
        users = wanted.get(node)
        moves = kind(node) in capabilities.transparent
        if users is None or not (moves or kind(node) in capabilities.same_grid) or set(node.users) != set(users):
            continue
        inputs = _tensor_inputs(node)
        if fixed & set(users) or any(n.op == "get_attr" for n in inputs):
            continue
        if any(wanted.get(value) and spans[node] > WIDER * spans[value] for value in inputs):
            # No grid for all; but what has a grid of its own comes in integers.
            for value in inputs:
                if wanted.get(value):
                    wanted[value].setdefault(node, _common(wanted[value].values()))
            continue
        qtype = _common(users.values())
        for value in inputs:
            wanted.setdefault(value, {})[node] = qtype
            names.setdefault(value, names[node])
            groups.join(value, node)
        if moves:
            del wanted[node]
    members: dict[Node, list[Node]] = {}
    for value in network.graph_module.graph.nodes:
        if value in wanted:
            members.setdefault(groups.root(value), []).append(value)
    order = {layer.name: position for position, layer in enumerate(network.layers)}
    sites = []
    for values in members.values():
        qtype = _common(qtype for value in values for qtype in wanted[value].values())
        edges = {value: tuple(wanted[value]) for value in values}
        sites.append(Site(min((names[v] for v in values), key=order.__getitem__), qtype, edges))
    return tuple(sites)


def _common(qtypes: Iterable[QType]) -> QType:
    """Return the format that serves all: symmetric if one must be, and as wide as the widest."""
    qtypes = list(qtypes)
    first = next((q for q in qtypes if q.symmetric), qtypes[0])
    return replace(first, bits=max(q.bits for q in qtypes))


def _wanted(
    network: Network,
    capabilities: Capabilities,
    skip: frozenset[str],
    widths: Widths | None,
    named: frozenset[str],
) -> tuple[dict[Node, dict[Node, QType]], dict[Node, str], set[Node]]:
    """Return what must be quantized (value → reader → format), a layer's name for each value, and the readers whose
    quantizer must not move.
    """
    wanted: dict[Node, dict[Node, QType]] = {}
    names: dict[Node, str] = {}
    fixed: set[Node] = set()
    for layer, support in supported_layers(network, capabilities, widths):
        value = layer.node.args[0]
        if layer.name in skip or support.activation is None or not isinstance(value, Node):
            continue
        if support.directly:
            fixed.add(layer.node)
        wanted.setdefault(value, {})[layer.node] = support.activation
        names.setdefault(value, layer.name)
        if layer.node.meta["val"].ndim in support.output:
            result = _behind_activation(layer.node)
            names.setdefault(result, layer.name)
            for user in result.users:
                wanted.setdefault(result, {}).setdefault(user, support.activation)
    rounded = {
        layer.name: support.activation.bits
        for layer, support in supported_layers(network, capabilities, widths)
        if layer.name not in skip and support.activation is not None
    }
    for reader in readers(network, capabilities) if named else ():
        # Never where activations are float, nor where a narrower grid would have to become as wide as this one.
        others = [qtype.bits for value in reader.values for qtype in wanted.get(value, {}).values()]
        if reader.node.name in named and min([rounded.get(reader.layer, 0), *others]) >= reader.qtype.bits:
            for value in reader.values:
                wanted.setdefault(value, {}).setdefault(reader.node, reader.qtype)
                names.setdefault(value, reader.layer)
    if capabilities.integers:
        _everywhere(network, capabilities, {layer for layer in rounded if rounded[layer]}, wanted, names)
    return wanted, names, fixed


def _everywhere(
    network: Network,
    capabilities: Capabilities,
    layers: set[str],
    wanted: dict[Node, dict[Node, QType]],
    names: dict[Node, str],
) -> None:
    """Want every value in integers that a layer or an operator of integers reads or gives.

    Args:
        network: without quantizers.
        capabilities: of the target.
        layers: names of those that run in integers.
        wanted: what is wanted already; more is put in.
        names: likewise.
    """
    by_node = {layer.node: layer.name for layer in network.layers}
    near = next(iter(by_node.values()))
    qtype = next(iter(capabilities.integers.values()))
    moving = capabilities.transparent | capabilities.same_grid
    for node in network.graph_module.graph.nodes:
        near = by_node.get(node, near)
        own = capabilities.integers.get(kind(node), qtype)
        if by_node.get(node) not in layers and kind(node) not in capabilities.integers and kind(node) not in moving:
            continue
        for value in (value for value in _tensor_inputs(node) if value.op != "get_attr" and is_real(value)):
            wanted.setdefault(value, {}).setdefault(node, own)
            names.setdefault(value, near)
        result = _behind_activation(node) if node in by_node or kind(node) in FUSED else node
        if is_real(result):
            names.setdefault(result, near)
            for user in result.users:
                wanted.setdefault(result, {}).setdefault(user, own)
    for node in list(wanted):  # what a fused activation reads is in no memory
        if (by_node.get(node) in layers or kind(node) in FUSED) and _behind_activation(node) is not node:
            del wanted[node]


def is_real(node: Node) -> bool:
    """Whether a value is a tensor of real numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _producer(value: Node) -> Node:
    """Return what computes a value, before the norms and activations that it went through."""
    while kind(value) in PASSED and len(value.users) == 1:
        value = value.all_input_nodes[0]
    return value


def _clamped(value: Node) -> Node:
    """Return what a clamp reads; the value itself if it is none."""
    return value.all_input_nodes[0] if kind(value) in ("relu", "clamp") else value


def _tensor_inputs(node: Node) -> list[Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def _behind_activation(node: Node) -> Node:
    """Return the clamp that alone reads a layer and that runtimes fuse with it, or the layer itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and kind(users[0]) in ("relu", "clamp") else node


class _Groups:
    """Union-find over graph nodes."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def root(self, node: Node) -> Node:
        while self._parent.get(node, node) is not node:
            node = self._parent[node]
        return node

    def join(self, one: Node, other: Node) -> None:
        self._parent[self.root(one)] = self.root(other)
