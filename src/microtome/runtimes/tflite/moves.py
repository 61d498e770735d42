"""What moves values and leaves them as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx import Node

from microtome.graph.operators import kind
from microtome.graph.watching.moments import named_arguments
from microtome.runtimes.tflite.writer import Writer, axis_of, first_input, moved


def concat(w: Writer, node: Node) -> None:
    """Write a concatenation: in integers all parts come on the grid of the whole."""
    values: Any = node.args[0]
    rank = len(w.shape(node))
    axis = int(node.args[1]) if len(node.args) > 1 else int(node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    last = any(w.is_last(value) for value in values if value.op != "get_attr")
    integer = all(w.integer(value) for value in values)
    tensors = [w.read(value, last=last, integer=integer) for value in values]
    if integer:
        grid = w.wanted(node) or w.model.grid(tensors[0])
        assert grid is not None
        tensors = [w.on(tensor, grid) for tensor in tensors]
    w.put(node, w.joined(tensors, axis_of(axis, rank, last=last), w.name(node)), last=last)


def reshape(w: Writer, node: Node) -> None:
    """Write whatever gives the same values, in the same order, another shape."""
    x = first_input(node)
    before, after = w.shape(x), w.shape(node)
    if w.is_last(x) and len(after) >= 3 and before[:2] == after[:2] and math.prod(before[2:]) == math.prod(after[2:]):
        found = w.reshaped(w.read(x, last=True), moved(after), w.name(node))
        w.put(node, found, last=True)
        return
    w.put(node, w.reshaped(w.read(x), after, w.name(node)))


def transpose(w: Writer, node: Node) -> None:
    """Write axes in another order."""
    x, rank = first_input(node), len(w.shape(node))
    if "dims" in named_arguments(node):
        order = [int(axis) % rank for axis in named_arguments(node)["dims"]]
    else:
        order = list(range(rank))
        pair: Any = node.args[1:3]
        one, other = (int(axis) % rank for axis in pair)
        order[one], order[other] = other, one
    w.put(node, w.transposed(w.read(x), order, w.name(node)))


def cut(w: Writer, node: Node) -> None:
    """Write a slice."""
    x, named = first_input(node), named_arguments(node)
    shape, last = w.shape(x), w.is_last(x)
    axis = int(named["dim"]) % len(shape)
    start, stop, _ = slice(w.number(named["start"]), w.number(named["end"])).indices(shape[axis])
    stored = axis_of(axis, len(shape), last=last)
    found = w.sliced(w.read(x, last=last), stored, start, stop, int(named["step"]), w.name(node))
    w.put(node, found, last=last)


def select(w: Writer, node: Node) -> None:
    """Write one slice, whose axis goes."""
    x = first_input(node)
    axis, index = int(node.args[1]), int(w.number(node.args[2]))  # type: ignore[arg-type]
    size = w.shape(x)[axis]
    part = w.sliced(w.read(x), axis % len(w.shape(x)), index % size, index % size + 1, 1, f"{w.name(node)}/slice")
    w.put(node, w.reshaped(part, w.shape(node), w.name(node)))


def part(w: Writer, node: Node) -> None:
    """Write one of the parts of a split."""
    source, index = first_input(node), int(node.args[1])  # type: ignore[arg-type]
    if kind(source) not in ("split", "split_with_sizes", "chunk", "unbind"):
        raise w.refusal(node, f"one of the results of {kind(source)} has no form in TensorFlow Lite")
    x = first_input(source)
    named = named_arguments(source)
    axis = int(named["dim"]) % len(w.shape(x))
    sizes = [shape[axis] if kind(source) != "unbind" else 1 for shape in w.number(source)]
    last = w.is_last(x) and kind(source) != "unbind"
    start = sum(sizes[:index])
    stored = axis_of(axis, len(w.shape(x)), last=last)
    found = w.sliced(w.read(x, last=last), stored, start, start + sizes[index], 1, w.name(node))
    if kind(source) == "unbind":
        found = w.reshaped(found, w.shape(node), f"{w.name(node)}/one")
    w.put(node, found, last=last)


def pad(w: Writer, node: Node) -> None:
    """Write zeros, or another value, around a tensor."""
    x, named = first_input(node), named_arguments(node)
    if named.get("mode", "constant") != "constant":
        raise w.refusal(node, f"padding by {named['mode']} has no form in TensorFlow Lite here")
    rank, last, value = len(w.shape(x)), w.is_last(x), named.get("value") or 0.0
    pads = [int(size) for size in w.number(named["pad"])]
    if any(size < 0 for size in pads):
        raise w.refusal(node, "padding that cuts off has no form in TensorFlow Lite")
    around = [(0, 0)] * rank
    for place in range(len(pads) // 2):
        around[axis_of(rank - 1 - place, rank, last=last)] = (pads[2 * place], pads[2 * place + 1])
    tensor = w.read(x, last=last, integer=None if not value else False)
    shape = [size + sum(pair) for size, pair in zip(w.model.shape(tensor), around, strict=True)]
    output = w.like(tensor, w.name(node), shape)
    if not value:
        w.put(node, w.model.operator("PAD", [tensor, w.ints(around)], output), last=last)
        return
    filled = w.model.constant("value", np.array(value, np.float32))
    w.put(node, w.model.operator("PADV2", [tensor, w.ints(around), filled], output), last=last)


def pixel_shuffle(w: Writer, node: Node) -> None:
    """Write channels laid out in space: reshapes and transposes, since TensorFlow Lite wants another order of them."""
    x, factor = first_input(node), int(node.args[1])  # type: ignore[arg-type]
    _, channels, height, width = w.shape(x)
    inner = channels // factor**2
    name, tensor = w.name(node), w.read(x, last=True)
    split = w.reshaped(tensor, (height, width, inner, factor * factor), f"{name}/split")
    # (H, W, C, r·r) → (H, r, W, r, C) in two steps of at most four axes each
    first = w.transposed(split, [0, 3, 1, 2], f"{name}/phases")
    rows = w.reshaped(first, (height, factor, factor, width * inner), f"{name}/rows")
    columns = w.reshaped(rows, (height * factor, factor, width, inner), f"{name}/columns")
    woven = w.transposed(columns, [0, 2, 1, 3], f"{name}/woven")
    w.put(node, w.reshaped(woven, moved(w.shape(node)), f"{name}/whole"), last=True)


def same(w: Writer, node: Node) -> None:
    """Let a value that nothing is done to be the one before."""
    x = first_input(node)
    for last, tensor in w.forms(x):
        w.put(node, tensor, last=last)


def nothing(w: Writer, node: Node) -> None:
    """Write nothing: what reads this reads what is before."""
    del w, node
