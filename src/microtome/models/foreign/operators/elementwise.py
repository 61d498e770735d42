"""Operators on each value by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.values import Array, Constant, Turned, Value, inverse, like

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

Handler = Callable[["Run"], "Value | list[Value]"]
FLOATS = {1, 10, 11, 16}  # TensorProto's numbers of float32, float16, float64 and bfloat16


def _one(function: Callable[[Tensor], Tensor]) -> Handler:
    return lambda run: like(run.value(0), function)


def _with(function: Callable[[Run], Callable[[Tensor], Tensor]]) -> Handler:
    """Return what takes its function from the step's attributes."""
    return lambda run: like(run.value(0), function(run))


def two(run: Run, function: Callable[[Any, Any], Any], first: int = 0, second: int = 1) -> Tensor | Turned:
    """Apply a function to two inputs that are broadcast; axes in another order stay so."""
    a, b = _operand(run, first), _operand(run, second)
    order = _order(a, b)
    if order is None:
        return function(_plain(run, a), _plain(run, b))  # type: ignore[no-any-return]
    return Turned(function(_in_order(run, a, order), _in_order(run, b, order)), order)


def _operand(run: Run, place: int) -> Any:
    """Return an input: a plain number where it is one, a constant as it is."""
    value = run.values[place]
    if isinstance(value, Constant | np.ndarray):
        array = value.array if isinstance(value, Constant) else value
        others = [v for k, v in enumerate(run.values) if k != place and isinstance(v, Tensor | Turned)]
        rank = max((len(v.order) if isinstance(v, Turned) else v.ndim for v in others), default=0)
        if array.size == 1 and array.ndim <= rank and not (isinstance(value, Constant) and value.grid):
            return array.reshape(-1)[0].item() if array.dtype != object else array.reshape(-1)[0]
        return value if isinstance(value, Constant) else run.value(place)
    return run.value(place)


def _order(*values: Any) -> tuple[int, ...] | None:
    """Return the order in which an operator runs: that of the first whose axes are turned, if others can follow."""
    orders = [v.order for v in values if isinstance(v, Turned)]
    if not orders:
        return None
    ranks = [_rank(v) for v in values]
    fits = all(rank <= len(orders[0]) for rank in ranks)
    return orders[0] if fits else None


def _rank(value: Any) -> int:
    if isinstance(value, Turned):
        return len(value.order)
    return value.array.ndim if isinstance(value, Constant) else getattr(value, "ndim", 0)


def _plain(run: Run, value: Any) -> Any:
    if isinstance(value, Constant):
        return run.module.parameter(value)
    return value.plain() if isinstance(value, Turned) else value


def _in_order(run: Run, value: Any, order: tuple[int, ...]) -> Any:
    """Return a value with its axes as `order` has them."""
    back = inverse(order)
    if isinstance(value, Constant):

        def moved(array: Array) -> Array:
            return array.reshape([1] * (len(order) - array.ndim) + list(array.shape)).transpose(back)

        if value.grid is None:
            return run.made(value, f"in order {back}", moved)
        value = run.module.parameter(value)
    if isinstance(value, Turned):
        return value.tensor if value.order == order else value.plain().permute(back)
    if isinstance(value, Tensor) and value.ndim:
        return value.reshape([1] * (len(order) - value.ndim) + list(value.shape)).permute(back)
    return value


def _pair(function: Callable[[Any, Any], Any]) -> Handler:
    return lambda run: two(run, function)


def _several(function: Callable[[Any, Any], Any]) -> Handler:
    """Return what folds any number of inputs."""

    def run(step: Run) -> Value:
        made: Any = step.values[0]
        for place in range(1, len(step.values)):
            step.values[0] = made
            made = two(step, function, 0, place)
        return made if len(step.values) > 1 else step.value(0)

    return run


def _tensors(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Any]:
    """Let a function that takes tensors only take numbers as well."""

    def apply(a: Any, b: Any) -> Any:
        known = a if isinstance(a, Tensor) else b
        a, b = (x if isinstance(x, Tensor) else torch.tensor(x, dtype=known.dtype) for x in (a, b))
        return function(a, b)

    return apply


def _divide(a: Any, b: Any) -> Any:
    whole = all(not x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, int) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _power(a: Any, b: Any) -> Any:
    return torch.pow(a, b)


def _modulo(run: Run) -> Value:
    function = torch.fmod if run.attribute("fmod", 0) else torch.remainder
    return two(run, function)


def _where(run: Run) -> Value:
    parts = [_operand(run, place) for place in range(3)]
    order = _order(*parts)
    if order is None:
        c, a, b = (_plain(run, part) for part in parts)
        return torch.where(c, a, b)
    c, a, b = (_in_order(run, part, order) for part in parts)
    return Turned(torch.where(c, a, b), order)


def _clip(run: Run) -> Value:
    low, high = run.attribute("min"), run.attribute("max")
    low = float(run.known(1).reshape(-1)[0]) if run.has(1) else low
    high = float(run.known(2).reshape(-1)[0]) if run.has(2) else high
    bounds = (low, high)
    huge = 3e38
    low, high = (None if b is None or abs(b) > huge else b for b in bounds)

    def clip(x: Tensor) -> Tensor:
        if low is not None and high is not None and x.is_floating_point():
            return F.hardtanh(x, low, high)  # as ReLU6 is captured
        return x if low is None and high is None else torch.clamp(x, low, high)

    return like(run.value(0), F.relu if (low, high) == (0.0, None) else clip)


def _cast(run: Run) -> Value:
    to = run.attribute("to")
    if run.step.op == "CastLike":
        return like(run.value(0), lambda x: x.to(run.tensor(1).dtype))
    if to in FLOATS:  # all floats are float32 here
        return like(run.value(0), lambda x: x if x.dtype == torch.float32 else x.to(torch.float32))
    if to == 9:
        return like(run.value(0), lambda x: x.to(torch.bool))
    return like(run.value(0), lambda x: x.to(torch.int64))


def _hard_sigmoid(run: Run) -> Callable[[Tensor], Tensor]:
    alpha, beta = run.attribute("alpha", 0.2), run.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid
    return lambda x: F.hardtanh(x * alpha + beta, 0.0, 1.0)


def _gelu(run: Run) -> Callable[[Tensor], Tensor]:
    approximate = run.attribute("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def _prelu(run: Run) -> Value:
    slope, x = run.constant(1), run.value(0)
    rank = len(x.order) if isinstance(x, Turned) else x.ndim
    if slope is None or slope.grid is not None:
        return two(run, lambda a, b: torch.where(a > 0, a, a * b))
    shape = (1,) * (rank - slope.array.ndim) + slope.array.shape
    axis = x.order.index(1) if isinstance(x, Turned) else 1  # which of the graph's axes PReLU takes for channels
    if slope.array.size == 1 or shape[axis] == slope.array.size:
        weight = run.made(slope, "of PReLU", lambda a: a.reshape(-1))
        return like(x, lambda t: F.prelu(t, weight))
    return two(run, lambda a, b: torch.where(a > 0, a, a * b))


def _swish(run: Run) -> Callable[[Tensor], Tensor]:
    alpha = run.attribute("alpha", 1.0)
    return F.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


def _same(run: Run) -> Value:
    value: Value = run.values[0]
    return value


TABLE: dict[str, Handler] = {
    "Identity": _same,
    "Dropout": _same,
    "Relu": _one(F.relu),
    "LeakyRelu": _with(lambda run: lambda x: F.leaky_relu(x, run.attribute("alpha", 0.01))),
    "Elu": _with(lambda run: lambda x: F.elu(x, run.attribute("alpha", 1.0))),
    "Celu": _with(lambda run: lambda x: F.celu(x, run.attribute("alpha", 1.0))),
    "Selu": _one(F.selu),
    "ThresholdedRelu": _with(lambda run: lambda x: torch.where(x > run.attribute("alpha", 1.0), x, 0.0)),
    "PRelu": _prelu,
    "Sigmoid": _one(torch.sigmoid),
    "HardSigmoid": _with(_hard_sigmoid),
    "HardSwish": _one(F.hardswish),
    "Swish": _with(_swish),
    "Mish": _one(F.mish),
    "Gelu": _with(_gelu),
    "com.microsoft.Gelu": _one(F.gelu),
    "Tanh": _one(torch.tanh),
    "Softplus": _one(F.softplus),
    "Softsign": _one(F.softsign),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Log": _one(torch.log),
    "Sqrt": _one(torch.sqrt),
    "Reciprocal": _one(torch.reciprocal),
    "Abs": _one(torch.abs),
    "Neg": _one(torch.neg),
    "Floor": _one(torch.floor),
    "Ceil": _one(torch.ceil),
    "Round": _one(torch.round),
    "Sign": _one(torch.sign),
    "Sin": _one(torch.sin),
    "Cos": _one(torch.cos),
    "Tan": _one(torch.tan),
    "Atan": _one(torch.atan),
    "Not": _one(torch.logical_not),
    "IsNaN": _one(torch.isnan),
    "IsInf": _one(torch.isinf),
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast,
    "Add": _pair(lambda a, b: a + b),
    "Sub": _pair(lambda a, b: a - b),
    "Mul": _pair(lambda a, b: a * b),
    "Div": _pair(_divide),
    "Pow": _pair(_power),
    "Mod": _modulo,
    "Equal": _pair(lambda a, b: a == b),
    "Less": _pair(lambda a, b: a < b),
    "LessOrEqual": _pair(lambda a, b: a <= b),
    "Greater": _pair(lambda a, b: a > b),
    "GreaterOrEqual": _pair(lambda a, b: a >= b),
    "And": _pair(_tensors(torch.logical_and)),
    "Or": _pair(_tensors(torch.logical_or)),
    "Xor": _pair(_tensors(torch.logical_xor)),
    "Where": _where,
    "Sum": _several(lambda a, b: a + b),
    "Max": _several(_tensors(torch.maximum)),
    "Min": _several(_tensors(torch.minimum)),
}
