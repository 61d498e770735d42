"""Quantizers whose values meet in a concatenation."""

from __future__ import annotations

from torch.fx import Node

from microtome.graph.operators import kind

PASSED = ("max_pool", "reshape", "transpose", "pad")
"""Operators that leave values on the grid that they came on."""


def meets_others(quantizer: Node) -> bool:
    """Whether a quantizer's values are concatenated with others, and read so without another quantizer in between.

    What meets shares one grid (`graph.choosing.placement`): with two grids the layer that reads the concatenation would
    have no grid for its input, and would run in float. So who changes one of these grids must change all of them alike.
    """
    seen: set[Node] = set()
    pending = list(quantizer.users)
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if kind(node) == "concat" and len(node.all_input_nodes) > 1 and _is_read_unrounded(node):
            return True
        if kind(node) in PASSED:
            pending.extend(node.users)
    return False


def _is_read_unrounded(node: Node) -> bool:
    """Whether somebody reads a value who does not put it on a grid of its own first."""
    return any(
        _is_read_unrounded(user) if kind(user) in (*PASSED, "concat") else kind(user) != "quantizer"
        for user in node.users
    )
