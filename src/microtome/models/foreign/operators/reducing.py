"""Sums, means, extremes and softmax along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.values import Turned, Value

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _reduced(function: Reduction) -> Callable[[Run], Value]:
    def run(step: Run) -> Value:
        value, keep = step.value(0), bool(step.attribute("keepdims", 1))
        rank = len(value.order) if isinstance(value, Turned) else value.ndim
        axes = step.listed("axes", 1)
        if not axes:
            if step.attribute("noop_with_empty_axes", 0):
                return value
            axes = list(range(rank))
        axes = [axis % rank for axis in axes]
        if not isinstance(value, Turned):
            return function(value, axes, keep)
        made = function(value.tensor, [value.axis(axis) for axis in axes], keep)
        if keep:
            return Turned(made, value.order)
        left = [value.order[axis] for axis in range(rank) if axis not in axes]
        order = [sorted(left).index(axis) for axis in left]
        return made if order == sorted(order) else Turned(made, tuple(order))

    return run


def _softmax(function: Callable[..., Tensor]) -> Callable[[Run], Value]:
    def run(step: Run) -> Value:
        value = step.value(0)
        rank = len(value.order) if isinstance(value, Turned) else value.ndim
        old = step.step.opset < 13
        axis = step.attribute("axis", 1 if old else -1) % rank
        if old and axis != rank - 1:
            x = step.tensor(0)
            rest = x.shape[axis + 1 :]
            if any(not isinstance(n, int) or n != 1 for n in rest):  # all axes from this one on are taken as one
                return function(x.flatten(axis), axis).reshape(x.shape)
        if isinstance(value, Turned):
            return Turned(function(value.tensor, value.axis(axis)), value.order)
        return function(value, axis)

    return run


def _place(function: Callable[..., Tensor]) -> Callable[[Run], Value]:
    def run(step: Run) -> Value:
        if step.attribute("select_last_index", 0):
            raise step.refuse("takes the last of several")
        return function(step.tensor(0), step.attribute("axis", 0), bool(step.attribute("keepdims", 1)))

    return run


def _top(run: Run) -> Value | list[Value]:
    if not run.attribute("sorted", 1):
        raise run.refuse("does not sort")
    found: Any = torch.topk(
        run.tensor(0), int(run.sizes(1)[0]), run.attribute("axis", -1), bool(run.attribute("largest", 1))
    )
    return [found.values, found.indices]


def _cumulative(run: Run) -> Value:
    if run.attribute("reverse", 0) or run.attribute("exclusive", 0):
        raise run.refuse("runs backwards or leaves the value itself out")
    return torch.cumsum(run.tensor(0), int(run.sizes(1)[0]))


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return the mean; over all axes of space as the pooling that modules have for it."""
    if keep and x.ndim in (4, 5) and sorted(axes) == list(range(2, x.ndim)):
        return F.adaptive_avg_pool2d(x, 1) if x.ndim == 4 else F.adaptive_avg_pool3d(x, 1)
    return x.mean(axes, keepdim=keep)


TABLE: dict[str, Callable[[Run], Value | list[Value]]] = {
    "ReduceMean": _reduced(_mean),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduced(_product),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "ArgMax": _place(torch.argmax),
    "ArgMin": _place(torch.argmin),
    "TopK": _top,
    "CumSum": _cumulative,
}
