"""How units go through matrix products, and so through attention: a head is one unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph.outputs import sizes
from microtome.graph.structure.following.flow import Flow, Rule, argument, blank, operand, tensors
from microtome.graph.structure.following.labels import NONE
from microtome.graph.structure.following.mixing_rules import combine


def contraction(flow: Flow, node: Node) -> Tensor:
    """Matrix products."""
    left, right = operand(node), operand(node, 1)
    first, second = (flow.of(left), sizes(left)), (flow.of(right), sizes(right))
    if len(first[1]) < 2 or len(second[1]) < 2:
        for labels, _ in (first, second):
            flow.labels.lock(labels, f"{flow.title(node)} multiplies it with a vector")
        result = blank(node)
        assert isinstance(result, Tensor)
        return result
    return _product(flow, first, second, node)


def _product(flow: Flow, one: tuple[Tensor, Sequence[int]], other: tuple[Tensor, Sequence[int]], node: Node) -> Tensor:
    """Return the labels of a matrix product over the last axis of one and the last but one of the other.

    What is summed over becomes one unit: a whole head of an attention.
    """
    title = flow.title(node)
    rows, columns = _summed(flow, one[0], -1, title), _summed(flow, other[0], -2, title)
    first = (rows, [*one[1][:-1], 1])
    second = (columns, [*other[1][:-2], 1, other[1][-1]])
    ndim = max(rows.ndim, columns.ndim)
    rows, columns = (value.reshape([1] * (ndim - value.ndim) + list(value.shape)) for value in (rows, columns))
    if bool((rows != NONE).any()) and bool((columns != NONE).any()):
        if rows.shape[-2] > 1 and columns.shape[-1] > 1:
            for labels in (rows, columns):
                flow.labels.lock(labels, f"{title} multiplies its channels with those of another value")
            return torch.full([1] * ndim, NONE)
        first, second = (_one_head(flow, rows, -2), first[1]), (_one_head(flow, columns, -1), second[1])
    return combine(flow, [first, second], title)


def _one_head(flow: Flow, labels: Tensor, axis: int) -> Tensor:
    """Take what lies along an axis for one unit."""
    if labels.shape[axis] == 1:
        return labels
    first = labels.amax(axis, keepdim=True)
    flow.labels.unify(first, labels)
    return flow.labels.find(first)


def _summed(flow: Flow, labels: Tensor, axis: int, title: str) -> Tensor:
    return _one_head(flow, flow.labels.find(labels), axis)


def attention(flow: Flow, node: Node) -> Tensor:
    """scaled_dot_product_attention(query, key, value, mask, …): two products with a mask and a softmax between."""
    query, key, value = (operand(node, place) for place in range(3))
    turned = (flow.of(key).transpose(-1, -2), [*sizes(key)[:-2], sizes(key)[-1], sizes(key)[-2]])
    scores = _product(flow, (flow.of(query), sizes(query)), turned, node)
    size = [*sizes(query)[:-1], sizes(key)[-2]]
    mask = argument(node, 3, "attn_mask")
    if isinstance(mask, Node):
        scores = combine(flow, [(scores, size), (flow.of(mask), sizes(mask))], flow.title(node))
    scores = flow.collapse(scores, [scores.ndim - 1], f"{flow.title(node)} takes its softmax")
    return _product(flow, (scores, size), (flow.of(value), sizes(value)), node)


def einsum(flow: Flow, node: Node) -> Tensor:
    """einsum(equation, (left, right)): axes that are summed over are one unit, as in a matrix product."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    assert isinstance(operands, list | tuple)
    result = blank(node)
    assert isinstance(result, Tensor)
    if "->" not in equation or "." in equation or len(operands) != 2:
        for source in tensors(node):
            flow.labels.lock(flow.of(source), f"{flow.title(node)} reads it, whose equation has no rule")
        return result
    given, out = equation.split("->")
    letters = given.split(",")
    shared = set(letters[0]) & set(letters[1]) & set(out)
    parts: list[tuple[Tensor, Sequence[int]]] = []
    for own, factor in zip(letters, operands, strict=True):
        assert isinstance(factor, Node)
        labels, size = flow.of(factor), dict(zip(own, sizes(factor), strict=True))
        for axis, letter in enumerate(own):
            if letter not in out:
                labels = _one_head(flow, labels, axis)
        kept = [axis for axis, letter in enumerate(own) if letter in out]
        labels = labels.permute(*kept, *(axis for axis in range(len(own)) if axis not in kept)).reshape(
            [labels.shape[axis] for axis in kept]
        )
        order = sorted(range(len(kept)), key=lambda place: out.index(own[kept[place]]))
        labels = labels.permute(order)
        present = [own[kept[place]] for place in order]
        for place, letter in enumerate(out):
            if letter not in present:
                labels = labels.unsqueeze(place)
        parts.append((labels, [size.get(letter, 1) for letter in out]))
    if all(bool((labels != NONE).any()) for labels, _ in parts):
        lonely = [
            [axis for axis, letter in enumerate(out) if labels.shape[axis] > 1 and letter not in shared]
            for labels, _ in parts
        ]
        if all(lonely):
            for labels, _ in parts:
                flow.labels.lock(labels, f"{flow.title(node)} multiplies its channels with those of another value")
            return result
        for place, axes in enumerate(lonely):
            for axis in axes:
                parts[place] = (_one_head(flow, parts[place][0], axis), parts[place][1])
    return combine(flow, parts, flow.title(node))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm"), contraction),
    "attention": attention,
    "einsum": einsum,
}
