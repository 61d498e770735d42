"""Resizing: PyTorch's own operator where it does the same, or else a product with a matrix along each axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.values import Array, Constant, Turned, Value

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _resize(run: Run) -> Value:
    old = run.step.op == "Upsample" or run.step.opset < 11
    x, mode = run.tensor(0), run.attribute("mode", "nearest")
    mode = "linear" if mode == "bilinear" else mode
    places = (1, None) if old else (2, 3)
    scales = _floats(run, places[0]) or run.attribute("scales")
    sizes = run.sizes(3) if places[1] and run.has(3) and run.known(3).size else None
    rank = x.ndim
    axes = [axis % rank for axis in run.attribute("axes") or range(rank)]
    if run.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise run.refuse("keeps the aspect ratio")
    new: list[Any] = list(x.shape)
    factors: list[Any] = [1.0] * rank
    for place, axis in enumerate(axes):
        if sizes is not None and axis == 0:
            continue  # a batch is not resized: what stands there is the batch of the example
        if sizes is not None:
            new[axis] = sizes[place]
            same = isinstance(sizes[place], int) and isinstance(x.shape[axis], int)
            factors[axis] = sizes[place] / x.shape[axis] if same else None
        elif scales is not None:
            factors[axis] = float(scales[place])
            new[axis] = x.shape[axis] if factors[axis] == 1.0 else math.floor(x.shape[axis] * factors[axis])
    if any(f not in (1.0, None) for f in factors[:2]):
        raise run.refuse("changes batch or channels")
    how = ("asymmetric", "floor") if old else _how(run)
    return _resized(run, x, mode, new[2:], factors[2:], how, by_size=sizes is not None)


def _how(run: Run) -> tuple[str, str]:
    transform = run.attribute("coordinate_transformation_mode", "half_pixel")
    return transform, run.attribute("nearest_mode", "round_prefer_floor")


def _floats(run: Run, place: int | None) -> list[float] | None:
    if place is None or not run.has(place) or not run.known(place).size:
        return None
    return [float(n) for n in run.known(place).reshape(-1)]


def _resized(
    run: Run, x: Tensor, mode: str, new: list[Any], factors: list[Any], how: tuple[str, str], *, by_size: bool
) -> Tensor:
    transform, rounding = how
    dims = len(new)
    # Sizes that are a multiple of what is there are given as factors, as modules have them.
    given: dict[str, Any] = {"size": new} if by_size else {"scale_factor": factors}
    if mode == "nearest":
        if _is_floor(x, new, factors, how):
            return F.interpolate(x, mode="nearest", **given)
        if transform in ("half_pixel", "pytorch_half_pixel") and rounding == "round_prefer_ceil":
            return F.interpolate(x, mode="nearest-exact", **given)
        return _by_places(run, x, new, factors, how)
    antialias = {"antialias": True} if run.attribute("antialias", 0) else {}
    cubic = mode == "cubic"
    standard = not cubic or (run.attribute("cubic_coeff_a", -0.75) == -0.75 and not run.attribute("exclude_outside", 0))
    name = ("bicubic" if dims == 2 else "") if cubic else LINEAR.get(dims, "")
    half = transform == "half_pixel" or (transform == "pytorch_half_pixel" and 1 not in new)
    if name and standard and (half or transform == "align_corners"):
        return F.interpolate(x, mode=name, align_corners=not half, **given, **antialias)
    if cubic or antialias:
        raise run.refuse(f"interpolates by {mode}, {transform}")
    return _by_matrices(run, x, new, factors, transform)


def _is_floor(x: Tensor, new: list[Any], factors: list[Any], how: tuple[str, str]) -> bool:
    """Whether nearest takes the value at ⌊i / factor⌋, as PyTorch does."""
    if how == ("asymmetric", "floor"):
        return True
    if any(factor is None or factor != int(factor) or factor < 1 for factor in factors):
        return False
    # Whole factors: the period is the factor, and one period tells.
    return all(_places(int(f) * 2, 2, f, how) == [i // int(f) for i in range(int(f) * 2)] for f in factors)


def _positions(new: int, old: int, factor: float, transform: str) -> Array:
    """Return where the new values stand among the old ones."""
    i = np.arange(new, dtype=np.float64)
    if transform == "align_corners":
        return i * (old - 1) / (new - 1) if new > 1 else i * 0
    if transform == "asymmetric":
        return i / factor
    if transform == "pytorch_half_pixel" and new == 1:
        return i * 0
    if transform == "half_pixel_symmetric":
        centre = old / 2 * (1 - new / (factor * old))
        return centre + (i + 0.5) / factor - 0.5
    if transform == "tf_half_pixel_for_nn":
        return (i + 0.5) / factor
    return (i + 0.5) / factor - 0.5


def _places(new: int, old: int, factor: float, how: tuple[str, str]) -> list[int]:
    x = _positions(new, old, factor, how[0])
    rounded = {
        "floor": np.floor(x),
        "ceil": np.ceil(x),
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
    }[how[1]]
    return [int(n) for n in np.clip(rounded, 0, old - 1)]


def _fixed(run: Run, x: Tensor, new: list[Any]) -> None:
    if not all(isinstance(n, int) for n in (*new, *x.shape[2:])):
        raise run.refuse(f"of the kind {_how(run)} with free sizes")


def _by_places(run: Run, x: Tensor, new: list[Any], factors: list[Any], how: tuple[str, str]) -> Tensor:
    _fixed(run, x, new)
    for axis, (size, factor) in enumerate(zip(new, factors, strict=True)):
        if size != x.shape[2 + axis]:
            places = np.array(_places(size, x.shape[2 + axis], factor, how), np.int64)
            index = run.module.parameter(
                Constant(f"{run.step.outputs[0]}_{axis}_{places.shape}_{x.shape[2 + axis]}", places)
            )
            x = x.index_select(2 + axis, index)
    return x


def _by_matrices(run: Run, x: Tensor, new: list[Any], factors: list[Any], transform: str) -> Tensor:
    _fixed(run, x, new)
    for axis, (size, factor) in enumerate(zip(new, factors, strict=True)):
        old = x.shape[2 + axis]
        if size == old and transform != "tf_half_pixel_for_nn":
            continue
        at = np.clip(_positions(size, old, factor, transform), 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        matrix = np.zeros((size, old), np.float32)
        np.add.at(matrix, (np.arange(size), low), 1 - (at - low))
        np.add.at(matrix, (np.arange(size), high), at - low)
        weight = run.module.parameter(Constant(f"{run.step.outputs[0]}_{axis}_{size}_{old}", matrix))
        x = torch.matmul(x.transpose(2 + axis, -1), weight.t()).transpose(2 + axis, -1)
    return x


def _grid_sample(run: Run) -> Value:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        run.attribute("mode", "linear"), run.attribute("mode", "linear")
    )
    settings = {"mode": mode, "padding_mode": run.attribute("padding_mode", "zeros")}
    return F.grid_sample(
        run.tensor(0), run.tensor(1), **settings, align_corners=bool(run.attribute("align_corners", 0))
    )


def _repeat(run: Run) -> Value:
    value = run.value(0)
    tensor = value.tensor if isinstance(value, Turned) else value
    factors = [1.0] * tensor.ndim
    for axis, times in run.attribute("factors"):
        factors[value.axis(axis) if isinstance(value, Turned) else axis] = float(times)
    if tensor.ndim in (4, 5) and factors[:2] == [1.0, 1.0]:
        made = F.interpolate(tensor, scale_factor=factors[2:], mode="nearest")
    else:
        made = tensor
        for axis, times in enumerate(factors):
            made = made.repeat_interleave(int(times), axis) if times != 1.0 else made
    return Turned(made, value.order) if isinstance(value, Turned) else made


TABLE: dict[str, Callable[[Run], Value]] = {
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "microtome.Repeat": _repeat,
}
