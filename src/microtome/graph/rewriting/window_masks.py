"""Masks of shifted windows, added in the attention's own shape: attention stays one chain that runtimes fuse."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, kind

Shape = tuple[Any, ...]


def window_masks(network: Network) -> Network:
    """Return the network with masks added to attention of all windows at once, without a reshape on either side.

    Shifted windows (Liu et al., ICCV 2021, "Swin Transformer", section 3.2) keep apart, by a mask per window, what was
    not adjacent. The usual code splits (N · windows, heads, n, n) into (N, windows, heads, n, n), adds the mask, and
    joins the axes again. A runtime that computes product, sums, softmax and product in one kernel stops at such a
    reshape and writes the matrices of all windows to memory several times. Here the mask, repeated N times, is added to
    the first form; the numbers are the same. Only where the number of windows is fixed.
    """
    masks = [mask for node in network.graph_module.graph.nodes if (mask := _mask(node)) is not None]
    if not masks:
        return network
    names = [mask.sum.name for mask in masks]
    network = network.copy()
    graph = network.graph_module.graph
    for node in [n for n in graph.nodes if n.name in names]:
        mask = _mask(node)
        assert mask is not None
        with graph.inserting_before(mask.joined):
            rows = graph.call_function(aten.sym_size.int, (mask.scores, 0))
            images = graph.call_function(operator.floordiv, (rows, mask.windows))
            of_windows = graph.call_function(aten.squeeze.dim, (mask.values, 0))
            repeated = graph.call_function(aten.repeat.default, (of_windows, [images, 1, 1, 1]))
            masked = graph.call_function(aten.add.Tensor, (mask.scores, repeated))
        masked.meta["val"] = mask.joined.meta["val"]
        mask.joined.replace_all_uses_with(masked)
    edit.finish(network.graph_module)
    return network


@dataclass(frozen=True)
class _Mask:
    """A mask that is added window by window.

    Attributes:
        scores: (N · windows, heads, n, n), before the mask.
        values: the mask, (1, windows, heads or 1, n, n).
        windows: their number per image.
        sum: of both, (N, windows, heads, n, n).
        joined: the sum in the shape of `scores`.
    """

    scores: Node
    values: Node
    windows: int
    sum: Node
    joined: Node


def _mask(node: Node) -> _Mask | None:
    """Return what a sum is, if it adds a mask between two reshapes."""
    if node.target is not aten.add.Tensor or len(node.users) != 1 or node.kwargs:
        return None
    (joined,) = node.users
    for split, values in (node.args[:2], node.args[1::-1]):
        if not isinstance(split, Node) or not isinstance(values, Node):
            return None
        if kind(split) != "reshape" or kind(joined) != "reshape":
            continue
        scores = split.args[0]
        assert isinstance(scores, Node)
        shapes = [_shape(n) for n in (scores, split, values, joined)]
        if _splits(*shapes):
            return _Mask(scores, values, int(shapes[1][1]), node, joined)
    return None


def _splits(
    scores: tuple[object, ...], split: tuple[object, ...], mask: tuple[object, ...], joined: tuple[object, ...]
) -> bool:
    """Whether shapes are those of (N · windows, …) split, masked alike for all N, and joined again."""
    return (
        (len(scores), len(split), len(mask), len(joined)) == (4, 5, 5, 4)
        and all(isinstance(n, int) for n in (*scores[1:], *split[1:], *mask, *joined[1:]))
        and scores[1:] == split[2:] == joined[1:]
        and mask[:2] == (1, split[1])
    )


def _shape(node: Node) -> Shape:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
