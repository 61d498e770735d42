"""A graph cut into blocks that can be run one by one, through skip connections.

A block is a stretch of the graph's order. What crosses its borders are values: a U-Net's skip connections cross several
blocks, and are inputs of the one that reads them.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from microtome.graph.network import first
from microtome.graph.operators import WEIGHTED, kind

WEIGHTED_KINDS = frozenset(WEIGHTED.values())


@dataclass(frozen=True)
class Block:
    """A stretch of a graph.

    Attributes:
        nodes: what it computes, in order; constants and what is made of them alone are not among them, unless an
            operator writes into it.
        inputs: values from before that it reads.
        outputs: values that it makes and that are read later.
        layers: how many layers it holds.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    layers: int


def blocks(graph_module: GraphModule, *, layers: int = 4) -> tuple[Block, ...]:
    """Cut a graph where few values are alive, with at most so many layers in a block.

    A layer takes along what follows it up to the next quantizer or layer: its norm and its activation function. Where
    an operator writes into a value that is still read afterwards, both stay in one block, be it longer.

    Args:
        graph_module: the graph, with its quantizers as nodes or as modules.
        layers: the most layers of a block; 1 gives single layers.
    """
    flowing = _flowing(graph_module)
    nodes = [node for node in flowing if node.op != "placeholder"]
    weighted = [kind(node) in WEIGHTED_KINDS and node.args[1] not in flowing for node in nodes]
    order = {node: position for position, node in enumerate(nodes)}
    last_use = {node: max((order[user] for user in node.users if user in order), default=-1) for node in flowing}
    found, start = [], 0
    together = _together(nodes, order, last_use)
    for end in _ends(nodes, weighted, last_use, together, layers):
        inside = nodes[start : end + 1]
        members = set(inside)
        inputs = dict.fromkeys(n for node in inside for n in node.all_input_nodes if n in flowing and n not in members)
        outputs = tuple(node for node in inside if last_use[node] > end or node.op == "output")
        found.append(Block(tuple(inside), tuple(inputs), outputs, sum(weighted[start : end + 1])))
        start = end + 1
    return tuple(found)


def join(one: Block, following: Block) -> Block:
    """Make one block of two neighbours."""
    members = {*one.nodes, *following.nodes}
    inputs = dict.fromkeys(node for node in (*one.inputs, *following.inputs) if node not in members)
    made = (*one.outputs, *following.outputs)
    outputs = tuple(node for node in made if node.op == "output" or any(user not in members for user in node.users))
    return Block((*one.nodes, *following.nodes), tuple(inputs), outputs, one.layers + following.layers)


def join_unequal(cut: Sequence[Block], capacities: Sequence[float], pairs: int) -> tuple[Block, ...]:
    """Join the neighbours whose capacities differ most, so many pairs; each block is in one pair at most.

    Where a small block follows a large one (or the reverse), the error of one-by-one optimisation oscillates (Ma et
    al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023).

    Args:
        cut: neighbouring blocks, in order.
        capacities: of each block.
        pairs: how many; no more than there are.
    """
    order = sorted(range(len(cut) - 1), key=lambda i: (-abs(capacities[i] - capacities[i + 1]), i))
    first: set[int] = set()
    for position in order:
        if len(first) < pairs and not {position - 1, position, position + 1} & first:
            first.add(position)
    return tuple(
        join(block, cut[position + 1]) if position in first else block
        for position, block in enumerate(cut)
        if position - 1 not in first
    )


def run_block(graph_module: GraphModule, block: Block, inputs: Mapping[Node, Any]) -> dict[Node, Any]:
    """Compute a block from its inputs and return its outputs; gradients flow.

    Args:
        graph_module: owns the block's constants and modules.
        block: of this graph.
        inputs: value of each of `block.inputs`. Operators that write into their input write into these.
    """
    values: dict[Node, Any] = dict(inputs)

    def value(node: Node) -> Any:
        if node not in values:  # a constant, or made of constants alone
            values[node] = _compute(graph_module, node, value)
        return values[node]

    for node in block.nodes:
        values[node] = _compute(graph_module, node, value)
    return {node: values[node] for node in block.outputs}


def _compute(graph_module: GraphModule, node: Node, value: Any) -> Any:
    if node.op == "get_attr":
        found: Any = graph_module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found
    args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
    if node.op == "call_module":
        return graph_module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "output":
        return first(args[0])
    assert node.op == "call_function"
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _flowing(graph_module: GraphModule) -> dict[Node, None]:
    """Return, in order, the nodes that depend on the input, and constants that operators write into: these have to be
    computed in the graph's order, and not when they are read.
    """
    nodes = list(graph_module.graph.nodes)
    written = {_owner(node.args[0]) for node in nodes if writes(node)}
    found: dict[Node, None] = {}
    for node in nodes:
        computed = node.op in ("call_function", "call_module")
        if (
            node.op in ("placeholder", "output")
            or any(n in found for n in node.all_input_nodes)
            or (computed and _owner(node) in written)
        ):
            found[node] = None
    return found


def _together(nodes: Sequence[Node], order: Mapping[Node, int], last_use: Mapping[Node, int]) -> set[int]:
    """Return the positions that no border may follow, because a value from before is written into and read later."""
    family: dict[Node, list[Node]] = {}
    for node in last_use:
        family.setdefault(_owner(node), []).append(node)
    found: set[int] = set()
    for position, node in enumerate(nodes):
        if writes(node):
            for value in family.get(_owner(node.args[0]), ()):
                made = order.get(value, -1)  # the network's input is there before
                if made < position < last_use[value]:
                    found.update(range(max(made, 0), position))
    return found


def writes(node: Node) -> bool:
    """Whether an operator writes into its input."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _owner(value: Any) -> Any:
    """Return the node in whose memory a value may lie."""
    while isinstance(value, Node) and value.op == "call_function" and _may_share(value):
        value = value.args[0]
    return value


def _may_share(node: Node) -> bool:
    """Whether a node's result may lie in the memory of its first argument: views, and what writes into it."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    shares = any(result.alias_info is not None for result in schema.returns)
    return shares and bool(node.args) and isinstance(node.args[0], Node)


def _ends(
    nodes: Sequence[Node],
    weighted: Sequence[bool],
    last_use: Mapping[Node, int],
    together: Collection[int],
    most: int,
) -> Iterator[int]:
    """Yield the position of each block's last node: where fewest values are alive, and as late as that goes."""
    start = 0
    while start < len(nodes):
        if not any(weighted[start:]):
            yield len(nodes) - 1
            return
        choices: list[tuple[int, int]] = []
        count, position = 0, start
        while position < len(nodes) and (count + weighted[position] <= most or not choices):
            count += weighted[position]
            last = position + 1 == len(nodes)
            if count and (last or (position not in together and _may_part(nodes[position], nodes[position + 1]))):
                choices.append((_alive(nodes, last_use, position), -position))
            position += 1
        end = -min(choices)[1]
        if not any(weighted[end + 1 :]):
            end = len(nodes) - 1
        yield end
        start = end + 1


def _alive(nodes: Sequence[Node], last_use: Mapping[Node, int], position: int) -> int:
    return sum(1 for node in nodes[: position + 1] if last_use[node] > position)


def _may_part(node: Node, following: Node) -> bool:
    """Whether a border may lie between two neighbours: not behind a quantizer, whose reader follows, and not between a
    value and the function that alone reads it.
    """
    if _is_quantizer(node):
        return False
    alone = list(node.users) == [following] and not _is_quantizer(following)
    return not alone or kind(following) in WEIGHTED_KINDS


def _is_quantizer(node: Node) -> bool:
    return kind(node) == "quantizer" or node.op == "call_module"
