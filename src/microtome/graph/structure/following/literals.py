"""Numbers in a graph that say how long axes are, and what they become when units are removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Node

from microtome.errors import OptionError
from microtome.graph.operators import aten, groups, kind
from microtome.graph.outputs import sizes
from microtome.graph.structure.following.flow import Flow, argument, axis_of, operand
from microtome.graph.structure.following.labels import compressed

SPLITS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"})


def lengths(mask: Tensor, what: str) -> dict[int, int]:
    """Return how long axes become: those along which a mask takes something away.

    Args:
        mask: bool, with size 1 along axes on which it is constant; at least one element stays.
        what: of which it is, for the error.

    Raises:
        OptionError: nothing stays, or what stays is no rectangle.
    """
    if bool(mask.all()):
        return {}
    if not bool(mask.any()):
        raise OptionError(f"a mask that empties a layer: nothing of {what} is left.", "Keep at least one unit of it.")
    full = mask.shape
    for axis in range(mask.ndim):
        kept = mask.movedim(axis, 0).reshape(mask.shape[axis], -1).any(1)
        mask = mask.index_select(axis, kept.nonzero().reshape(-1))
    if not bool(mask.all()):
        raise OptionError(f"the rows of {what} keep unequally many units.", "Leave this group as it is.")
    return {axis: size for axis, size in enumerate(mask.shape) if size != full[axis]}


class Masks:
    """Which elements of the values of a graph stay.

    Args:
        flow: labels of the values.
        removed: bool, for each representative whether its unit goes.
    """

    def __init__(self, flow: Flow, removed: Tensor) -> None:
        """Note what is removed."""
        self._flow = flow
        self._removed = removed

    def of(self, node: Node, place: int | None = None) -> Tensor:
        """Return the mask of a value, with size 1 along axes on which it is constant; `place` is of several outputs."""
        value = self._flow.elements(node) if node.op == "get_attr" else self._flow.values[node]
        if isinstance(value, list):
            assert place is not None
            value = value[place]
        return self.stay(value)

    def stay(self, labels: Tensor) -> Tensor:
        """Return which labels stay."""
        return compressed(~self._removed[self._flow.labels.find(labels)])

    def lengths(self, node: Node, place: int | None = None) -> dict[int, int]:
        """Return how long the axes of a value become."""
        return lengths(self.of(node, place), node.name)

    def along(self, node: Node, axis: int) -> Tensor:
        """Return how many of each slice along an axis stay, as a mask of the axis in full: any, in the first line."""
        mask = self.of(node).movedim(axis, 0)
        size = sizes(node)[axis]
        lines = mask.reshape(mask.shape[0], -1).expand(size, -1)
        return lines[:, lines.any(0)][:, 0]


def rewrite(node: Node, masks: Masks) -> None:
    """Give an operator the numbers that fit what is left of its values."""
    name = kind(node).strip("_")
    change = CHANGES.get(name)
    if change is not None:
        change(node, masks)
    elif groups_matter(node):
        _regroup(node, masks)


def groups_matter(node: Node) -> bool:
    """Whether a layer is a grouped convolution."""
    return kind(node) in ("conv", "conv_transpose") and groups(node) > 1


def _set(node: Node, place: int, name: str, value: Any) -> None:
    """Replace an argument where it is given."""
    if len(node.args) > place:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def _regroup(node: Node, masks: Masks) -> None:
    source = operand(node)
    count, axis = groups(node), 1
    left = int(masks.along(source, axis).reshape(count, -1).any(1).sum())
    _set(node, 8 if node.target is aten.convolution.default else 6, "groups", left)


def _sized(place: int, name: str) -> Callable[[Node, Masks], None]:
    """Rewrite a list of sizes."""

    def change(node: Node, masks: Masks) -> None:
        given: Any = argument(node, place, name)
        if not isinstance(given, list | tuple):
            return
        new = list(given)
        lead = len(sizes(node)) - len(given)
        for axis, size in masks.lengths(node).items():
            at = axis - lead
            if isinstance(new[at], int):
                new[at] = size if new[at] != -1 else -1
            elif -1 not in new:
                new[at] = -1
            else:
                raise OptionError(
                    f"{node.name} computes the length of an axis that is cut.", "Leave this group as it is."
                )
        _set(node, place, name, new)

    return change


def _unflatten(node: Node, masks: Masks) -> None:
    axis, given = axis_of(node), list(argument(node, 2, "sizes"))
    for place, size in masks.lengths(node).items():
        if 0 <= place - axis < len(given) and given[place - axis] != -1:
            given[place - axis] = size
    _set(node, 2, "sizes", given)


def _repeat(node: Node, masks: Masks) -> None:
    source, times = operand(node), list(argument(node, 1, "repeats"))
    lead = len(times) - len(sizes(source))
    before = masks.lengths(source)
    for axis, size in masks.lengths(node).items():
        if axis - lead not in before:
            times[axis] = size
    _set(node, 1, "repeats", times)


def _split(node: Node, masks: Masks) -> None:
    axis, pieces = axis_of(node, 2), node.meta["val"]
    found = [masks.lengths(node, place) for place in range(len(pieces))]
    if any(axis in piece for piece in found):
        new = [piece.get(axis, int(value.shape[axis])) for piece, value in zip(found, pieces, strict=True)]
        node.target, node.args, node.kwargs = aten.split_with_sizes.default, (node.args[0], new, axis), {}


def _slice(node: Node, masks: Masks) -> None:
    source = operand(node)
    axis = axis_of(node)
    mask = masks.of(source)
    if mask.shape[axis] == 1:
        return
    line = masks.along(source, axis)
    for place, name in ((2, "start"), (3, "end")):
        value = argument(node, place, name)
        if isinstance(value, int) and value < len(line):
            _set(node, place, name, int(line[:value].sum()))


def _select(node: Node, masks: Masks) -> None:
    source, index = operand(node), argument(node, 2, "index")
    axis = axis_of(node)
    mask = masks.of(source)
    if mask.shape[axis] > 1 and isinstance(index, int):
        slices = mask.movedim(axis, 0).reshape(mask.shape[axis], -1).any(1)
        _set(node, 2, "index", int(slices[: index % len(slices)].sum()))


def _pad(node: Node, masks: Masks) -> None:
    source, amounts = operand(node), list(argument(node, 1, "pad"))
    ndim = len(sizes(source))
    for place in range(len(amounts) // 2):
        axis = ndim - 1 - place
        mask = masks.of(node)
        if mask.shape[axis] == 1:
            continue
        line, before, after = masks.along(node, axis), amounts[2 * place], amounts[2 * place + 1]
        amounts[2 * place : 2 * place + 2] = [
            int(line[:before].sum()),
            int(line[len(line) - after :].sum()) if after else 0,
        ]
    _set(node, 1, "pad", amounts)


def _group_norm(node: Node, masks: Masks) -> None:
    source, count = operand(node), int(argument(node, 1, "num_groups"))
    kept = masks.along(source, 1).reshape(count, -1).sum(1)
    left = kept[kept > 0]
    if not bool((left == left[0]).all()):
        raise OptionError(
            f"the groups of {node.name} keep unequally many channels.",
            "Keep the same number in each of a group's parts.",
        )
    _set(node, 1, "num_groups", len(left))


def _layer_norm(node: Node, masks: Masks) -> None:
    source, shape = operand(node), list(argument(node, 1, "normalized_shape"))
    lead = len(sizes(source)) - len(shape)
    for axis, size in masks.lengths(source).items():
        if axis >= lead:
            shape[axis - lead] = size
    _set(node, 1, "normalized_shape", shape)


def _view(node: Node, masks: Masks) -> None:
    if "flatten" not in str(node.target):
        _sized(1, "size")(node, masks)
    elif "unflatten" in str(node.target):
        _unflatten(node, masks)


CHANGES: dict[str, Callable[[Node, Masks], None]] = {
    **dict.fromkeys(("reshape", "view", "_unsafe_view", "unsafe_view"), _view),
    **dict.fromkeys(("zeros", "ones", "full"), _sized(0, "size")),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "expand", "broadcast_to"), _sized(1, "size")),
    **dict.fromkeys(SPLITS, _split),
    "unflatten": _unflatten,
    "repeat": _repeat,
    "slice": _slice,
    "select": _select,
    "pad": _pad,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
}
