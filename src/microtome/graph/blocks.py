"""A graph cut into blocks that can be run one by one, through skip connections.

A block is a stretch of the graph's order. What crosses its borders are values: a U-Net's skip connections cross several
blocks, and are inputs of the one that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from microtome.graph.operators import WEIGHTED, kind

WEIGHTED_KINDS = frozenset(WEIGHTED.values())


@dataclass(frozen=True)
class Block:
    """A stretch of a graph.

    Attributes:
        nodes: what it computes, in order; constants and what is made of them alone are not among them.
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

    A layer takes along what follows it up to the next quantizer or layer: its norm and its activation function.

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
    for end in _ends(nodes, weighted, last_use, layers):
        inside = nodes[start : end + 1]
        members = set(inside)
        inputs = dict.fromkeys(n for node in inside for n in node.all_input_nodes if n in flowing and n not in members)
        outputs = tuple(node for node in inside if last_use[node] > end or node.op == "output")
        found.append(Block(tuple(inside), tuple(inputs), outputs, sum(weighted[start : end + 1])))
        start = end + 1
    return tuple(found)


def run_block(graph_module: GraphModule, block: Block, inputs: Mapping[Node, Any]) -> dict[Node, Any]:
    """Compute a block from its inputs and return its outputs; gradients flow.

    Args:
        graph_module: owns the block's constants and modules.
        block: of this graph.
        inputs: value of each of `block.inputs`.
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
        return args[0]
    assert node.op == "call_function"
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _flowing(graph_module: GraphModule) -> dict[Node, None]:
    """Return the nodes that depend on the input, in order."""
    found: dict[Node, None] = {}
    for node in graph_module.graph.nodes:
        if node.op in ("placeholder", "output") or any(n in found for n in node.all_input_nodes):
            found[node] = None
    return found


def _ends(nodes: Sequence[Node], weighted: Sequence[bool], last_use: Mapping[Node, int], most: int) -> Iterator[int]:
    """Yield the position of each block's last node: where fewest values are alive, and as late as that goes."""
    start = 0
    while start < len(nodes):
        if not any(weighted[start:]):
            yield len(nodes) - 1
            return
        choices, count, position = [], 0, start
        while position < len(nodes) and count + weighted[position] <= most:
            count += weighted[position]
            if count and (position + 1 == len(nodes) or _may_part(nodes[position], nodes[position + 1])):
                choices.append((_alive(nodes, last_use, position), -position))
            position += 1
        end = -min(choices)[1] if choices else max(position - 1, start)
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
