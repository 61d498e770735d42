"""Layers with weights, and norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.values import Constant, Value

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def padding(run: Run, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[Any]:
    """Return what is added before each axis, and then what is added after each, of convolutions and poolings."""
    dims, auto = len(kernel), run.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return list(run.attribute("pads") or [0] * (2 * dims))
    if auto == "VALID":
        return [0] * (2 * dims)
    before, after = [], []
    for axis in range(dims):
        size, reach = x.shape[2 + axis], (kernel[axis] - 1) * dilations[axis] + 1
        if strides[axis] == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + reach - size)
        else:  # the padding of each layer would depend on the size of all before it
            raise run.refuse("pads as the size asks, and that is free")
        less, more = total // 2, total - total // 2
        before.append(less if auto == "SAME_UPPER" else more)
        after.append(more if auto == "SAME_UPPER" else less)
    return before + after


def padded(x: Tensor, pads: Sequence[Any], value: float = 0.0) -> tuple[Tensor, list[Any]]:
    """Return the input and what an operator has to pad on both sides of each axis: uneven padding is done before."""
    dims = len(pads) // 2
    before, after = list(pads[:dims]), list(pads[dims:])
    if before == after:
        return x, before
    both = [n for axis in reversed(range(dims)) for n in (before[axis], after[axis])]
    return F.pad(x, both, value=value), [0] * dims


def _conv(run: Run) -> Value:
    return convolved(run, run.tensor(0), run.tensor(1), run.optional(2))


def convolved(run: Run, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as the step's attributes say."""
    dims = weight.ndim - 2
    if dims not in CONV:
        raise run.refuse(f"has {dims} axes of space")
    strides, dilations = run.attribute("strides") or [1] * dims, run.attribute("dilations") or [1] * dims
    pads = padding(run, x, weight.shape[2:], strides, dilations)
    x, both = padded(x, pads)
    return CONV[dims](x, weight, bias, strides, both, dilations, run.attribute("group", 1))


def _conv_transpose(run: Run) -> Value:
    x, weight, bias = run.tensor(0), run.tensor(1), run.optional(2)
    dims = weight.ndim - 2
    if dims not in CONV:
        raise run.refuse(f"has {dims} axes of space")
    strides, dilations = run.attribute("strides") or [1] * dims, run.attribute("dilations") or [1] * dims
    extra = list(run.attribute("output_padding") or [0] * dims)
    whole = [
        (x.shape[2 + k] - 1) * strides[k] + (weight.shape[2 + k] - 1) * dilations[k] + 1 + extra[k] for k in range(dims)
    ]
    wanted, auto = run.attribute("output_shape"), run.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [x.shape[2 + k] * strides[k] for k in range(dims)]
    if wanted is None:
        pads = list(run.attribute("pads") or [0] * (2 * dims))
    else:
        totals = [whole[k] - list(wanted)[-dims:][k] for k in range(dims)]
        half = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
        pads = half + [total - h for total, h in zip(totals, half, strict=True)]
    before, after = pads[:dims], pads[dims:]
    settings = (run.attribute("group", 1), dilations)
    # What is cut off after may be less than before: then the operator makes more there.
    more = [e + b - a for e, b, a in zip(extra, before, after, strict=True)]
    allowed = all(isinstance(m, int) and 0 <= m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True))
    if allowed and all(isinstance(b, int) and b >= 0 for b in before):
        return CONV_TRANSPOSE[dims](x, weight, bias, strides, before, more, *settings)
    made = CONV_TRANSPOSE[dims](x, weight, bias, strides, [0] * dims, extra, *settings)
    cut = [-n for axis in reversed(range(dims)) for n in (before[axis], after[axis])]
    return F.pad(made, cut)


def _gemm(run: Run) -> Value:
    alpha, beta = run.attribute("alpha", 1.0), run.attribute("beta", 1.0)
    a = run.tensor(0).t() if run.attribute("transA", 0) else run.tensor(0)
    turned_b, b, bias = run.attribute("transB", 0), run.constant(1), run.constant(2)
    if b is not None and (bias is not None or not run.has(2)) and (alpha == 1.0 or b.grid is None):
        weight = weight_of(run, b, transpose=not turned_b, factor=alpha)
        made = None if bias is None else _vector(run, bias, b.array.shape[0 if turned_b else 1], beta)
        if bias is None or made is not None:
            return F.linear(a, weight, made)
    other = run.tensor(1).t() if turned_b else run.tensor(1)
    product = torch.matmul(a, other)
    product = product if alpha == 1.0 else product * alpha
    return product + run.tensor(2) * beta if run.has(2) else product


def weight_of(run: Run, value: Constant, *, transpose: bool, factor: float = 1.0) -> Tensor:
    """Return a matrix as the weight of a linear layer, (outputs, inputs)."""
    if not transpose and factor == 1.0:
        return run.module.parameter(value)

    def make(constant: Constant) -> Constant:
        made = constant.transposed((1, 0)) if transpose else constant
        return made if factor == 1.0 else Constant(made.name, made.array * np.float32(factor))

    return run.module.parameter(value, f"linear {transpose} {factor}", make)


def _vector(run: Run, bias: Constant, size: int, factor: float) -> Tensor | None:
    """Return a bias as one value per output; None if it has more axes than that."""
    if bias.array.size not in (1, size) or (bias.array.ndim > 1 and bias.array.shape[-1] != bias.array.size):
        return None
    if bias.array.shape == (size,) and factor == 1.0:
        return run.module.parameter(bias)
    return run.made(bias, f"vector {factor}", lambda a: np.broadcast_to(a.reshape(-1), (size,)) * np.float32(factor))


def _matmul(run: Run) -> Value:
    b = run.constant(1)
    if b is not None and b.array.ndim == 2:
        bias = run.constant(2)  # from the sum behind, see patterns
        return F.linear(
            run.tensor(0), weight_of(run, b, transpose=True), None if bias is None else run.module.parameter(bias)
        )
    return torch.matmul(run.tensor(0), run.tensor(1))


def _batch_norm(run: Run) -> Value:
    x = run.tensor(0)
    scale, bias, mean, variance = (run.tensor(place) for place in range(1, 5))
    if run.attribute("training_mode", 0):
        raise run.refuse("is in training mode")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.1, run.attribute("epsilon", 1e-5))


def _affine(run: Run) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and bias of a norm; None for those that change nothing."""
    scale, bias = run.constant(1), run.constant(2)
    trivial = scale is not None and bool(np.all(scale.array == 1)) and (bias is None or bool(np.all(bias.array == 0)))
    return (None, None) if trivial else (run.optional(1), run.optional(2))


def _instance_norm(run: Run) -> Value:
    scale, bias = _affine(run)
    return F.instance_norm(run.tensor(0), weight=scale, bias=bias, eps=run.attribute("epsilon", 1e-5))


def _group_norm(run: Run) -> Value:
    x, groups = run.tensor(0), run.attribute("num_groups")
    scale, bias = (run.constant(place) for place in (1, 2))
    channels = int(x.shape[1])

    def each(value: Constant | None) -> Tensor | None:
        if value is None or value.array.size == channels:
            return None if value is None else run.made(value, "per channel", lambda a: a.reshape(-1))
        return run.made(value, "per channel", lambda a: np.repeat(a.reshape(-1), channels // groups))

    return F.group_norm(x, groups, each(scale), each(bias), run.attribute("epsilon", 1e-5))


def _layer_norm(run: Run) -> Value:
    x = run.tensor(0)
    axis = run.attribute("axis", -1) % x.ndim
    shape = [int(n) for n in x.shape[axis:]]

    def whole(place: int) -> Tensor | None:
        value = run.constant(place)
        if value is None or list(value.array.shape) == shape:
            return run.optional(place)
        return run.made(value, "whole", lambda a: np.broadcast_to(a, shape))

    return F.layer_norm(x, shape, whole(1), whole(2), run.attribute("epsilon", 1e-5))


def _rms_norm(run: Run) -> Value:
    x = run.tensor(0)
    axis = run.attribute("axis", -1) % x.ndim
    return F.rms_norm(x, [int(n) for n in x.shape[axis:]], run.tensor(1), run.attribute("epsilon", 1e-5))


def _mean_variance(run: Run) -> Value:
    x, axes = run.tensor(0), list(run.attribute("axes") or [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + 1e-9)


def _lp_norm(run: Run) -> Value:
    return F.normalize(run.tensor(0), run.attribute("p", 2), run.attribute("axis", -1), eps=1e-30)


def _lrn(run: Run) -> Value:
    settings = (run.attribute("alpha", 1e-4), run.attribute("beta", 0.75), run.attribute("bias", 1.0))
    return F.local_response_norm(run.tensor(0), run.attribute("size"), *settings)


TABLE = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LpNormalization": _lp_norm,
    "LRN": _lrn,
}
