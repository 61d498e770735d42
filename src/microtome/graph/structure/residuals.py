"""Whole blocks that a network can do without: branches of residual sums, and layers between values of one kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.fx import Node

from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, is_weighted, kind
from microtome.graph.outputs import sizes

NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm"})
ACTIVATIONS = frozenset({"relu", "leaky_relu", "prelu", "elu", "gelu", "silu", "clamp", "mish", "hardswish"})


@dataclass(frozen=True, eq=False)
class Block:
    """Part of a network that can go, since what it makes has the shape of what takes its place.

    Attributes:
        name: of its first layer; unique.
        kind: `branch` of a residual sum, which leaves the identity or the shortcut; or `layer`, with its norm and
            activation, behind a value that comes from a norm and an activation of the same kinds.
        layers: names of the layers that go.
        parameters: how many weights go with it.
    """

    name: str
    kind: Literal["branch", "layer"]
    layers: tuple[str, ...]
    parameters: int


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a block is: what it makes, what takes its place, and the nodes that go."""

    kind: Literal["branch", "layer"]
    result: Node
    instead: Node
    nodes: frozenset[Node]


def removable_blocks(network: Network) -> tuple[Block, ...]:
    """Return the blocks that can go, in the order of their first layers. They may lie within one another."""
    return tuple(_blocks(network))


def remove_blocks(network: Network, names: Iterable[str]) -> Network:
    """Return a network without some blocks; the names of the other layers stay.

    Args:
        network: the network.
        names: of blocks. One that went with another one that holds it is passed over.

    Raises:
        OptionError: there is no such block.
    """
    known = {block.name: block for block in removable_blocks(network)}
    network = network.copy()
    for name in dict.fromkeys(names):
        if name not in known:
            listed = f"They are {', '.join(known)}." if known else "There are none in this network."
            raise OptionError(f"there is no block {name!r} that could be removed.", listed)
        place = {block.name: at for block, at in _blocks(network).items()}.get(name)
        if place is not None:
            _remove(place)
            edit.finish(network.graph_module)
        elif not {layer.name for layer in network.layers}.isdisjoint(known[name].layers):
            raise OptionError(
                f"the block {name} cannot be removed any more once the ones before it are gone.", "Name fewer blocks."
            )
    return network


def _blocks(network: Network) -> dict[Block, _Place]:
    """Return the blocks and where they are; of two with one name the larger."""
    names = {layer.node: layer.name for layer in network.layers}
    places = [place for node in network.graph_module.graph.nodes for place in (*_branches(node), *_layers(node))]
    found: dict[str, tuple[Block, _Place]] = {}
    for place in places:
        layers = tuple(name for node, name in names.items() if node in place.nodes)
        if layers and (layers[0] not in found or len(found[layers[0]][0].layers) < len(layers)):
            block = Block(layers[0], place.kind, layers, _parameters(network, place.nodes))
            found[block.name] = (block, place)
    order = list(names.values())
    return dict(sorted(found.values(), key=lambda pair: order.index(pair[0].name)))


def _parameters(network: Network, nodes: frozenset[Node]) -> int:
    constants = {source for node in nodes for source in node.all_input_nodes if source.op == "get_attr"}
    own = [str(c.target) for c in constants if set(c.users) <= nodes]
    return sum(network.tensor(name).numel() for name in own if network.is_weight(name))


def _branches(node: Node) -> Iterator[_Place]:
    """Yield the branches of a sum that can go."""
    if kind(node) != "add" or len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return
    one, other = node.args
    if not isinstance(one, Node) or not isinstance(other, Node) or one is other or not _alike(one, other):
        return
    for branch, rest in ((one, other), (other, one)):
        nodes = _only_for(branch, node)
        inputs = _inputs(nodes)
        if rest in nodes or _writes_outside(nodes):
            continue
        if rest in inputs:
            yield _Place("branch", node, rest, nodes)
            continue
        shortcut = _only_for(rest, node)
        if inputs and inputs == _inputs(shortcut) and _count(nodes) > _count(shortcut):
            yield _Place("branch", node, rest, nodes)


def _layers(node: Node) -> Iterator[_Place]:
    """Yield a layer with what follows it, if the value in front of it comes from such a norm and activation."""
    if not is_weighted(node) or not isinstance(node.args[0], Node):
        return
    before, chain = node.args[0], [node]
    while len(chain[-1].users) == 1:
        follower = next(iter(chain[-1].users))
        if kind(follower) not in NORMS | ACTIVATIONS or follower.args[0] is not chain[-1]:
            break
        chain.append(follower)
    signs = [kind(part) for part in chain[1:]]
    earlier: list[str] = []
    value: Any = before
    while kind(value) in NORMS | ACTIVATIONS:
        earlier.insert(0, kind(value))
        value = value.args[0]
    if signs and signs == earlier and _alike(before, chain[-1]):
        yield _Place("layer", chain[-1], before, frozenset(chain))


def _remove(place: _Place) -> None:
    """Put what takes a block's place where its result was read."""
    instead = place.instead
    if any(_in_place(user) for value in (place.result, instead) for user in value.users):
        with place.result.graph.inserting_before(place.result):  # nobody may write into a value that others read
            copied = place.result.graph.call_function(aten.clone.default, (instead,))
        copied.meta = dict(instead.meta)
        instead = copied
    place.result.replace_all_uses_with(instead)
    for node in reversed(list(place.result.graph.nodes)):  # operators that write in place are not taken for dead
        if (node is place.result or node in place.nodes) and not node.users:
            node.graph.erase_node(node)


def _only_for(value: Node, reader: Node) -> frozenset[Node]:
    """Return the operators whose results are read, in the end, by nothing but one reader's operand."""
    found: set[Node] = set()
    if set(value.users) != {reader}:
        return frozenset()
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if node in found or node.op != "call_function":
            continue
        if node is not value and not all(user in found for user in node.users):
            continue
        found.add(node)
        waiting += node.all_input_nodes
    return frozenset(found)


def _inputs(nodes: frozenset[Node]) -> set[Node]:
    """Return the values that operators read from outside; constants are none."""
    read = {source for node in nodes for source in node.all_input_nodes if source not in nodes}
    return {source for source in read if source.op != "get_attr" and isinstance(source.meta.get("val"), Tensor)}


def _count(nodes: frozenset[Node]) -> int:
    return sum(is_weighted(node) for node in nodes)


def _writes_outside(nodes: frozenset[Node]) -> bool:
    return any(_in_place(node) and node.args[0] not in nodes for node in nodes)


def _in_place(node: Node) -> bool:
    """Whether an operator writes into its first argument."""
    name = str(getattr(node.target, "_opname", ""))
    return name.endswith("_") and not name.startswith("_")


def _alike(one: Node, other: Node) -> bool:
    """Whether two values have the same shape in the example; a sum or a chain gives no other size then."""
    first, second = one.meta.get("val"), other.meta.get("val")
    return isinstance(first, Tensor) and isinstance(second, Tensor) and sizes(one) == sizes(other)
