"""Poolings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.operators.layers import padded, padding
from microtome.models.foreign.values import Integers, Turned, Value

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
AVERAGE_ALL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MAX_ALL = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def _max(run: Run) -> Value:
    if len(run.step.outputs) > 1 and run.step.outputs[1]:
        raise run.refuse("gives the places of maxima")
    value = run.values[0]
    if isinstance(value, Integers):  # integers in the order of what they stand for
        run.values[0] = value.value
        made = _max(run)
        assert isinstance(made, Tensor | Turned)
        return Integers(made, value.grid)
    x, kernel = run.tensor(0), list(run.attribute("kernel_shape"))
    dims = len(kernel)
    strides, dilations = run.attribute("strides") or [1] * dims, run.attribute("dilations") or [1] * dims
    x, both = padded(x, padding(run, x, kernel, strides, dilations), -math.inf)
    if any(2 * pad > size for pad, size in zip(both, kernel, strict=True)):
        x, both = F.pad(x, [n for pad in reversed(both) for n in (pad, pad)], value=-math.inf), [0] * dims
    return MAX[dims](x, kernel, strides, both, dilations, bool(run.attribute("ceil_mode", 0)))


def _average(run: Run) -> Value:
    x, kernel = run.tensor(0), list(run.attribute("kernel_shape"))
    dims = len(kernel)
    strides, dilations = run.attribute("strides") or [1] * dims, run.attribute("dilations") or [1] * dims
    if any(d != 1 for d in dilations):
        raise run.refuse("is dilated")
    pads, count = padding(run, x, kernel, strides, dilations), bool(run.attribute("count_include_pad", 0))
    whole, ceil = not any(isinstance(n, torch.SymInt) or n for n in pads), bool(run.attribute("ceil_mode", 0))
    made, both = padded(x, pads)
    uneven = made is not x
    pooled = AVERAGE[dims](made, kernel, strides, both, ceil, count or whole or uneven)
    if uneven and not count:  # as many values count as there are
        ones, _ = padded(torch.ones_like(x[:1, :1]), pads)
        pooled = pooled / AVERAGE[dims](ones, kernel, strides, [0] * dims, ceil, True)
    return pooled


def _all(functions: Mapping[int, Callable[..., Any]]) -> Callable[[Run], Value]:
    def run(step: Run) -> Value:
        x = step.tensor(0)
        pooled: Tensor = functions[x.ndim - 2](x, 1)
        return pooled

    return run


TABLE = {
    "MaxPool": _max,
    "AveragePool": _average,
    "GlobalAveragePool": _all(AVERAGE_ALL),
    "GlobalMaxPool": _all(MAX_ALL),
}
