"""How units go through operators that compute: layers, norms, sums and products, reductions, matrix products."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.graph.operators import constant_source, groups, kind
from microtome.graph.outputs import sizes
from microtome.graph.structure.following.flow import (
    Flow,
    Rule,
    Spread,
    Stretches,
    argument,
    blank,
    joined,
    lies_along,
    operand,
    tensors,
)
from microtome.graph.structure.following.labels import NONE

POINTWISE = frozenset(
    {
        *("abs", "add", "addcdiv", "addcmul", "alias", "bitwise_and", "bitwise_not", "ceil", "celu", "clamp"),
        *("clamp_max", "clamp_min", "clone", "contiguous", "copy", "cos", "detach", "div", "elu", "empty_like"),
        *("eq", "erf", "exp", "expm1", "fill", "floor", "full_like", "ge", "gelu", "gt", "hardsigmoid"),
        *("hardswish", "identity", "isnan", "le", "leaky_relu", "lerp", "log", "log1p", "log_sigmoid"),
        *("logical_and", "logical_not", "logical_or", "lt", "masked_fill", "maximum", "minimum", "mish", "mul"),
        *("nan_to_num", "ne", "neg", "ones_like", "pow", "rand_like", "randn_like", "reciprocal", "relu"),
        *("relu6", "round", "rsqrt", "rsub", "selu", "sigmoid", "sign", "silu", "sin", "softplus", "softsign"),
        *("sqrt", "square", "sub", "tanh", "to", "to_copy", "true_divide", "type_as", "where", "zero"),
        *("zeros_like"),
    }
)
REDUCING = frozenset(
    {
        *("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm", "norm"),
        *("any", "all"),
    }
)
ALONG = frozenset(
    {
        *("softmax", "log_softmax", "cumsum", "sort", "argmax", "argmin", "flip", "roll", "max", "min", "topk"),
    }
)
RESAMPLING = frozenset(
    {
        *(
            "max_pool",
            "avg_pool",
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
        ),
        *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
        *(f"{form}_pad{n}d" for form in ("reflection", "replication") for n in (1, 2, 3)),
        *(f"{form}_pool{n}d" for form in ("adaptive_avg", "adaptive_max", "avg", "lp", "max") for n in (1, 2, 3)),
        *(f"{form}_pool{n}d_with_indices" for form in ("adaptive_max", "max") for n in (1, 2, 3)),
    }
)


def combine(flow: Flow, values: Sequence[tuple[Tensor, Sequence[int]]], title: str) -> Tensor:
    """Return the labels of an elementwise operator's output; operands that meet have the same units.

    Args:
        flow: what is known.
        values: labels and sizes of the operands; they broadcast.
        title: of the operator, for reasons.
    """
    ndim = max(len(size) for _, size in values)
    result = torch.full([1] * ndim, NONE)
    shape = [1] * ndim
    for given, own in values:
        labels = given.reshape([1] * (ndim - len(own)) + list(given.shape))
        size = [1] * (ndim - len(own)) + list(own)
        result = _met(flow, (result, shape), (labels, size), title)
        shape = [max(a, b) for a, b in zip(shape, size, strict=True)]
    return result


def _met(flow: Flow, one: tuple[Tensor, list[int]], other: tuple[Tensor, list[int]], title: str) -> Tensor:
    """Return the labels of two operands together."""
    first, second, size, length = flow.labels.compressed(one[0]), flow.labels.compressed(other[0]), one[1], other[1]
    for labels, blind, there in ((second, first, size), (first, second, length)):
        if bool((blind == NONE).all()):
            if any(n > 1 and there[axis] > 1 for axis, n in enumerate(labels.shape)):
                flow.labels.lock(labels, f"{title} joins it with values whose channels cannot be followed")
            return labels
    covers = lies_along(second, size)
    covered = lies_along(first, length)
    if covers and covered:
        return joined(flow, first, second, title)
    if covers or covered:  # one says nothing along an axis of the other's units
        wide, narrow, there = (first, second, length) if covers else (second, first, size)
        flow.spread.append(Spread(wide, narrow, tuple(there), title))
        return wide
    for labels in (first, second):
        flow.labels.lock(labels, f"{title} spreads it over the channels of another value")
    return torch.full([1] * first.ndim, NONE)


def pointwise(flow: Flow, node: Node) -> Tensor:
    """Elementwise operators."""
    operands = [(flow.of(source), sizes(source)) for source in tensors(node)]
    if not operands:
        result = blank(node)
        assert isinstance(result, Tensor)
        return result
    return combine(flow, operands, flow.title(node))


def weighted(flow: Flow, node: Node) -> Tensor:
    """Convolutions, transposed convolutions, linear layers: columns read units, rows make new ones."""
    source, weight = operand(node), _constant(node.args[1])
    shape, layer = weight.meta["val"].shape, flow.layers[node]
    axis = len(sizes(source)) - 1 if kind(node) == "linear" else len(sizes(source)) - (len(shape) - 1)
    count = groups(node)
    read, written = (0, 1) if kind(node) == "conv_transpose" else (1, 0)
    inputs = flow.vector(flow.of(source), axis, sizes(source)[axis])
    outputs = flow.labels.fresh(sizes(node)[axis], hard=True)
    if count > 1:
        _grouped(flow, inputs, outputs, count)
        inner = len(inputs) if read == 0 else len(inputs) // count
        outer = len(outputs) if written == 0 else len(outputs) // count
    else:
        inner, outer = len(inputs), len(outputs)
    whole = count > 1 and _by_group(inputs, outputs, count)
    if not (whole and read == 1):
        flow.fact(weight, read, inputs[:inner], "reads", layer)
    if not (whole and written == 1):
        flow.fact(weight, written, outputs[:outer], "writes", layer)
    flow.attach(outputs, argument(node, 2, "bias"))
    result = [1] * len(sizes(node))
    result[axis] = len(outputs)
    return outputs.reshape(result)


def _by_group(inputs: Tensor, outputs: Tensor, count: int) -> bool:
    """Whether a grouped convolution loses whole groups, and not the same channels of every group."""
    return count >= min(len(inputs), len(outputs)) // count


def _grouped(flow: Flow, inputs: Tensor, outputs: Tensor, count: int) -> None:
    """Say what a grouped convolution can lose: whole groups, or channels of all groups, whichever is finer."""
    ins, outs = inputs.reshape(count, -1), outputs.reshape(count, -1)
    if _by_group(inputs, outputs, count):
        flow.labels.unify(ins[:, :1], ins)
        flow.labels.unify(outs[:, :1], outs)
        flow.labels.unify(ins[:, 0], outs[:, 0])
    else:
        flow.labels.unify(ins[:1], ins)
        flow.labels.unify(outs[:1], outs)


def _constant(value: Any) -> Node:
    source = constant_source(value)
    assert source is not None
    return source


def channel_norm(flow: Flow, node: Node) -> Tensor:
    """Batch and instance norm, PReLU: one number per channel, along the second axis."""
    source = operand(node)
    labels = flow.of(source)
    if labels.ndim < 2:
        return labels
    vector = flow.vector(labels, 1, sizes(source)[1])
    for constant in node.args[1:5]:
        flow.attach(vector, constant)
    return vector.reshape([-1 if axis == 1 else 1 for axis in range(labels.ndim)])


def group_norm(flow: Flow, node: Node) -> Tensor:
    """group_norm(x, groups, weight, bias): each group loses as many channels as the others, or all."""
    source, count = operand(node), int(argument(node, 1, "num_groups"))
    vector = flow.vector(flow.of(source), 1, sizes(source)[1])
    for place, name in ((2, "weight"), (3, "bias")):
        flow.attach(vector, argument(node, place, name))
    if 1 < count < len(vector):
        flow.stretches.append(Stretches(vector.reshape(count, -1), flow.title(node)))
    return vector.reshape([-1 if axis == 1 else 1 for axis in range(len(sizes(source)))])


def layer_norm(flow: Flow, node: Node) -> Tensor:
    """layer_norm(x, shape, weight, bias): weights lie along the last axes."""
    given = [operand(node), argument(node, 2, "weight"), argument(node, 3, "bias")]
    values = [(flow.of(value), sizes(value)) for value in given if isinstance(value, Node)]
    return combine(flow, values, flow.title(node))


def spatial(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """Pooling and resampling: whatever lies along the last axes is mixed."""
    source = operand(node)
    labels = flow.of(source)
    found = re.search(r"([123])d", str(node.target))
    last = int(found[1]) if found else max(labels.ndim - 2, 0)
    axes = range(labels.ndim - last, labels.ndim)
    result = flow.collapse(labels, axes, f"{flow.title(node)} mixes its channels")
    return result if isinstance(node.meta["val"], Tensor) else [result] * len(node.meta["val"])


def reduction(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """Means, sums and norms over axes."""
    source = operand(node)
    place = 2 if kind(node) in ("linalg_vector_norm", "norm", "logsumexp") and len(node.args) > 2 else 1
    dims: Any = argument(node, place, "dim")
    labels, ndim = flow.of(source), len(sizes(source))
    if isinstance(dims, int):
        dims = [dims]
    axes = sorted({dim % ndim for dim in dims}) if isinstance(dims, list | tuple) and dims else list(range(ndim))
    result = flow.collapse(labels, axes, f"{flow.title(node)} sums over its channels")
    return _fewer(result, axes, node)


def _fewer(labels: Tensor, axes: Sequence[int], node: Node) -> Tensor | list[Tensor]:
    """Return labels without the axes that an operator took away, if it did."""
    output = blank(node)
    short = labels
    for axis in sorted(axes, reverse=True):
        short = short.select(axis, 0)
    if isinstance(output, list):
        return [labels if part.ndim == labels.ndim else short for part in output]
    return labels if output.ndim == labels.ndim else short


def along(flow: Flow, node: Node) -> Tensor | list[Tensor]:
    """Softmax, sorting, rolling: what lies along an axis is mixed or moved."""
    if len(tensors(node)) > 1:  # maximum of two values
        return pointwise(flow, node)
    source = operand(node)
    place = 2 if kind(node) in ("roll", "topk") else 1
    dims: Any = argument(node, place, "dims" if kind(node) in ("roll", "flip") else "dim")
    labels, ndim = flow.of(source), len(sizes(source))
    if isinstance(dims, int):
        dims = [dims]
    axes = [dim % ndim for dim in dims] if isinstance(dims, list | tuple) and dims else list(range(ndim))
    result = flow.collapse(labels, axes, f"{flow.title(node)} mixes its channels")
    return _fewer(result, axes, node)


RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), channel_norm),
    **dict.fromkeys(REDUCING, reduction),
    **dict.fromkeys(ALONG, along),
    **dict.fromkeys(RESAMPLING, spatial),
    "weighted": weighted,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
}
