"""How units go through operators that only move values: views, permutations, slices, concatenations, paddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph.operators import aten
from microtome.graph.outputs import sizes
from microtome.graph.structure.following.flow import LARGEST, Flow, Rule, argument, axis_of, blank, operand, unknown
from microtome.graph.structure.following.labels import NONE, compressed, full_along, reshaped


def view(flow: Flow, node: Node) -> Tensor:
    """Views, reshapes, flattening."""
    source = operand(node)
    return reshaped(flow.of(source), sizes(source), sizes(node))


def turned(flow: Flow, node: Node) -> Tensor:
    """permute, transpose, movedim and the like: the operator itself, on labels."""
    operator: Any = node.target
    result: Tensor = operator(flow.of(operand(node)), *node.args[1:], **node.kwargs)
    return result


def squeeze(flow: Flow, node: Node) -> Tensor:
    """squeeze and unsqueeze: axes of size 1 go and come."""
    source = operand(node)
    return reshaped(flow.of(source), sizes(source), sizes(node))


def select(flow: Flow, node: Node) -> Tensor:
    """select(x, axis, index)."""
    axis, index = axis_of(node), argument(node, 2, "index")
    labels = _one_by_one(flow, node, axis)
    if labels.shape[axis] == 1:
        return labels.select(axis, 0)
    return (
        labels.select(axis, index)
        if isinstance(index, int)
        else flow.collapse(labels, [axis], _picks(flow, node)).select(axis, 0)
    )


def unbind(flow: Flow, node: Node) -> list[Tensor]:
    """unbind(x, axis)."""
    source = operand(node)
    axis = axis_of(node)
    labels = full_along(_one_by_one(flow, node, axis), axis, sizes(source)[axis])
    return [compressed(part) for part in labels.unbind(axis)]


def _one_by_one(flow: Flow, node: Node, axis: int) -> Tensor:
    """Return the labels of a value from which slices are picked by number; a unit may not be a whole slice."""
    source = operand(node)
    labels = flow.of(source)
    if labels.shape[axis] > 1:
        flow.picked.append((labels, axis, _picks(flow, node)))
    return labels


def _picks(flow: Flow, node: Node) -> str:
    return f"{flow.title(node)} picks single channels"


def slices(flow: Flow, node: Node) -> Tensor:
    """slice(x, axis, start, end, step)."""
    source = operand(node)
    axis = axis_of(node)
    labels = flow.of(source)
    if labels.shape[axis] == 1:
        return labels
    start, end, step = (argument(node, place, name) for place, name in ((2, "start"), (3, "end"), (4, "step")))
    known = all(value is None or isinstance(value, int) for value in (start, end, step))
    if not known or step not in (None, 1):
        return flow.collapse(labels, [axis], f"{flow.title(node)} leaves channels out by their number")
    return labels[(slice(None),) * axis + (slice(start, end),)]


def split(flow: Flow, node: Node) -> list[Tensor]:
    """split, split_with_sizes, chunk: the pieces are as long as the outputs are."""
    source, pieces = operand(node), node.meta["val"]
    axis = axis_of(node, 2)
    labels = flow.of(source)
    if labels.shape[axis] == 1:
        return [labels] * len(pieces)
    lengths = [int(piece.shape[axis]) for piece in pieces]
    return [compressed(part) for part in torch.split(labels, lengths, axis)]


def item(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """One of several outputs."""
    index: Any = node.args[1]
    part: Tensor = flow.values[operand(node)][index]
    return part


def joined(flow: Flow, node: Node) -> Tensor:
    """cat(values, axis)."""
    values: Any = node.args[0]
    axis = axis_of(node)
    parts = [(flow.of(value), sizes(value)) for value in values if sizes(value) != [0]]
    return _joined(parts, axis)


def _joined(parts: list[tuple[Tensor, list[int]]], axis: int) -> Tensor:
    shape = [max(labels.shape[place] for labels, _ in parts) for place in range(parts[0][0].ndim)]
    wide = []
    for labels, size in parts:
        here = list(shape)
        here[axis] = size[axis]
        wide.append(labels.expand(here))
    return compressed(torch.cat(wide, axis))


def stacked(flow: Flow, node: Node) -> Tensor:
    """stack(values, axis)."""
    values: Any = node.args[0]
    axis = int(argument(node, 1, "dim", 0)) % len(sizes(node))
    parts = []
    for value in values:
        size = sizes(value)
        parts.append((flow.of(value).unsqueeze(axis), [*size[:axis], 1, *size[axis:]]))
    return _joined(parts, axis)


def expand(flow: Flow, node: Node) -> Tensor:
    """expand(x, sizes): an axis of size 1 becomes longer; its copies are units that others may take for theirs."""
    source = operand(node)
    before, after = sizes(source), sizes(node)
    labels = flow.of(source)
    labels = labels.reshape([1] * (len(after) - len(before)) + list(labels.shape))
    before = [1] * (len(after) - len(before)) + before
    return _copies(flow, node, labels, [n for n in range(len(after)) if before[n] == 1 < after[n]])


def _copies(flow: Flow, node: Node, labels: Tensor, axes: list[int]) -> Tensor:
    """Give the copies of one slice units of their own, if there is one such axis, and its length is fixed."""
    value = node.meta["val"]
    axes = [axis for axis in axes if axis > 0 and isinstance(value.shape[axis], int)]
    if len(axes) != 1 or labels.numel() > 1:
        return labels
    shape = [1] * labels.ndim
    shape[axes[0]] = sizes(node)[axes[0]]
    return flow.labels.fresh(shape[axes[0]], hard=False).reshape(shape)


def repeat(flow: Flow, node: Node) -> Tensor:
    """repeat(x, times)."""
    source, times = operand(node), argument(node, 1, "repeats")
    labels, before = flow.of(source), sizes(source)
    lead = len(times) - len(before)
    labels, before = labels.reshape([1] * lead + list(labels.shape)), [1] * lead + before
    fresh = _copies(flow, node, labels, [n for n, size in enumerate(before) if size == 1 < sizes(node)[n]])
    if fresh is not labels:
        return fresh
    tiles = [time if labels.shape[axis] > 1 else 1 for axis, time in enumerate(times)]
    if not all(isinstance(tile, int) for tile in tiles):
        result = unknown(flow, node)
        assert isinstance(result, Tensor)
        return result
    return labels.repeat(tiles)


def pad(flow: Flow, node: Node) -> Tensor:
    """pad(x, (before last, after last, before last but one, …)): new channels belong to whatever they are added to."""
    source, amounts = operand(node), argument(node, 1, "pad")
    labels, size = flow.of(source), sizes(source)
    mode = (
        node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else node.kwargs.get("mode", "constant")
    )
    for place in range(len(amounts) // 2):
        axis = len(size) - 1 - place
        before, after = amounts[2 * place : 2 * place + 2]
        single = axis == 1 and size[axis] == labels.numel() == 1 and bool((labels != NONE).all())
        if (labels.shape[axis] == 1 and not single) or (before == 0 and after == 0):
            continue  # no channels lie along this axis
        if mode != "constant" or not isinstance(before, int) or not isinstance(after, int) or min(before, after) < 0:
            flow.labels.lock(labels, f"{flow.title(node)} pads its channels")
            result = blank(node)
            assert isinstance(result, Tensor)
            return result
        labels = full_along(labels, axis, size[axis])
        parts = [labels]
        for count, at in ((before, 0), (after, 1)):
            if count:
                shape = [1] * labels.ndim
                shape[axis] = count
                new = flow.labels.fresh(count, hard=False).reshape(shape)
                wide = [count if n == axis else length for n, length in enumerate(labels.shape)]
                parts.insert(0 if at == 0 else len(parts), new.expand(wide))
        labels = torch.cat(parts, axis)
    return labels


def shuffled(flow: Flow, node: Node) -> Tensor:
    """pixel_shuffle(x, factor): factor² channels become one; they are one unit."""
    source, factor = operand(node), int(argument(node, 1, "factor"))
    axis = len(sizes(source)) - 3
    vector = flow.vector(flow.of(source), axis, sizes(source)[axis]).reshape(-1, factor * factor)
    flow.labels.unify(vector[:, :1], vector)
    return flow.labels.find(vector[:, 0]).reshape([-1 if n == axis else 1 for n in range(len(sizes(source)))])


def unshuffled(flow: Flow, node: Node) -> Tensor:
    """pixel_unshuffle(x, factor): a channel becomes factor² of them, all of one unit."""
    source, factor = operand(node), int(argument(node, 1, "factor"))
    axis = len(sizes(source)) - 3
    vector = flow.vector(flow.of(source), axis, sizes(source)[axis]).repeat_interleave(factor * factor)
    return vector.reshape([-1 if n == axis else 1 for n in range(len(sizes(source)))])


def gathered(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """index(x, (None, …, numbers, …)) with numbers along one axis: what lies along it is taken for one unit."""
    source = operand(node)
    places: Any = node.args[1]
    chosen = [(axis, place) for axis, place in enumerate(places) if place is not None]
    if len(chosen) != 1 or chosen[0][1].meta["val"].dtype == torch.bool:
        return unknown(flow, node)
    axis, place = chosen[0]
    labels = flow.collapse(flow.of(source), [axis], _picks(flow, node))
    shape = [*labels.shape[:axis], *[1] * len(sizes(place)), *labels.shape[axis + 1 :]]
    return labels.reshape(shape)


def index_select(flow: Flow, node: Node) -> Tensor:
    """index_select(x, axis, numbers)."""
    source = operand(node)
    return flow.collapse(flow.of(source), [axis_of(node)], _picks(flow, node))


def embedding(flow: Flow, node: Node) -> Tensor:
    """embedding(table, numbers): rows of a table."""
    table, numbers = operand(node), operand(node, 1)
    labels = flow.collapse(flow.of(table), [0], _picks(flow, node))
    return labels.reshape([1] * len(sizes(numbers)) + [-1])


def made(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """zeros, ones, full: small ones are followed like constants."""
    result, shape = blank(node), node.meta["val"].shape
    if not all(isinstance(size, int) for size in shape) or not node.meta["val"].dtype.is_floating_point:
        return result
    count = shape.numel()
    return flow.labels.fresh(count, hard=False).reshape(shape) if 1 < count <= LARGEST >> 3 else result


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("reshape", "view", "_unsafe_view", "unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"), view
    ),
    **dict.fromkeys(("transpose", "permute", "movedim", "t", "swapaxes", "numpy_T"), turned),
    **dict.fromkeys(("squeeze", "unsqueeze"), squeeze),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"), split),
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), made),
    **dict.fromkeys(("expand", "broadcast_to", "expand_as"), expand),
    "select": select,
    "unbind": unbind,
    "slice": slices,
    "getitem": item,
    "concat": joined,
    "stack": stacked,
    "repeat": repeat,
    "pad": pad,
    "pixel_shuffle": shuffled,
    "pixel_unshuffle": unshuffled,
    "index": gathered,
    "index_select": index_select,
    "embedding": embedding,
}
