"""Convolutions one behind the other, or side by side, as one convolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.core.columns import Geometry


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution or a linear layer, which is one without spatial axes.

    Attributes:
        weight: (O, I / groups, *kernel); of transposed ones (I, O / groups, *kernel).
        bias: (O,), if it has one.
        geometry: how it walks over its input.
    """

    weight: Tensor
    bias: Tensor | None
    geometry: Geometry


def identity(channels: int, axes: int, like: Tensor) -> Convolution:
    """Return the convolution that changes nothing: one tap of 1 per channel."""
    once, none = (1,) * axes, (0,) * axes
    return Convolution(like.new_ones((channels, 1, *once)), None, Geometry(once, once, none, once, channels))


def averaging(channels: int, geometry: Geometry, like: Tensor) -> Convolution:
    """Return an average pool, zeros of the padding counted, as a convolution; `geometry` has as many groups."""
    return Convolution(like.new_full((channels, 1, *geometry.kernel), 1 / geometry.taps), None, geometry)


def composed(first: Convolution, second: Convolution, *, most: float = math.inf) -> Convolution | None:
    """Return second(first(x)) as one convolution, computed in float64; None where that is not exact, or too large.

    Where the second pads with zeros, the first must give zeros beyond the image's border: it has one tap along that
    axis, and no bias. Transposed convolutions take convolutions of one tap, before (without bias) or behind them.

    Args:
        first: reads the input.
        second: reads the first's output.
        most: weights that the result may have.
    """
    one, other = first.geometry, second.geometry
    if one.transposed or other.transposed:
        return _with_transposed(first, second, most)
    no_bias = first.bias is None or not bool(first.bias.any())
    if any(pad and (size > 1 or not no_bias) for pad, size in zip(other.padding, one.kernel, strict=True)):
        return None
    steps = [d * s for d, s in zip(other.dilation, one.stride, strict=True)]  # of the second, in the first's input
    reach = [a + b for a, b in zip(_reach(one.kernel, one.dilation), _reach(other.kernel, steps), strict=True)]
    kernel, dilation = _grid([_between(one.kernel, one.dilation), _between(other.kernel, steps)], reach)
    groups = math.gcd(one.groups, other.groups)
    before, behind = _blocks(first, groups), _blocks(second, groups)
    shape = (groups, behind.shape[1], before.shape[2], *kernel)
    if math.prod(shape) > most:
        return None
    weight = before.new_zeros(shape)
    for u in _taps(other.kernel):
        for v in _taps(one.kernel):
            at = [(i * step + j * d) // g for i, step, j, d, g in zip(u, steps, v, one.dilation, dilation, strict=True)]
            weight[_at(at)] += behind[_at(u)] @ before[_at(v)]
    bias = None if second.bias is None else second.bias.double()
    if first.bias is not None:
        passed = behind.reshape(*behind.shape[:3], -1).sum(3) @ first.bias.double().reshape(groups, -1, 1)
        bias = passed.flatten() + (0 if bias is None else bias)
    geometry = Geometry(
        kernel,
        tuple(a * b for a, b in zip(one.stride, other.stride, strict=True)),
        tuple(p + s * q for p, s, q in zip(one.padding, one.stride, other.padding, strict=True)),
        dilation,
        groups,
    )
    return _float(weight.flatten(0, 1), bias, geometry, first)


def summed(one: Convolution, other: Convolution, *, most: float = math.inf) -> Convolution | None:
    """Return one(x) + other(x) as one convolution, computed in float64; None where that is not exact, or too large.

    Both must have the same stride, and padding that makes outputs of the same size (Ding et al., "RepVGG", CVPR 2021,
    section 3.3). An identity is `identity(channels, …)`.

    Args:
        one: reads the input.
        other: reads it too.
        most: weights that the result may have.
    """
    a, b = one.geometry, other.geometry
    if a.transposed or b.transposed or a.stride != b.stride or _shrinks(a) != _shrinks(b):
        return None
    padding = tuple(max(p, q) for p, q in zip(a.padding, b.padding, strict=True))
    starts = [tuple(most - p for most, p in zip(padding, g.padding, strict=True)) for g in (a, b)]
    ends = [
        [s + e for s, e in zip(start, _reach(g.kernel, g.dilation), strict=True)]
        for start, g in zip(starts, (a, b), strict=True)
    ]
    apart = [_between(g.kernel, g.dilation) for g in (a, b)]
    kernel, dilation = _grid([*starts, *apart], [max(end) for end in zip(*ends, strict=True)])
    groups = math.gcd(a.groups, b.groups)
    parts = [_blocks(one, groups), _blocks(other, groups)]
    shape = (*parts[0].shape[:3], *kernel)
    if parts[0].shape[:3] != parts[1].shape[:3] or math.prod(shape) > most:
        return None
    weight = parts[0].new_zeros(shape)
    for part, walk, start in zip(parts, (a, b), starts, strict=True):
        for v in _taps(walk.kernel):
            at = [(s + i * d) // g for s, i, d, g in zip(start, v, walk.dilation, dilation, strict=True)]
            weight[_at(at)] += part[_at(v)]
    biases = [part.bias.double() for part in (one, other) if part.bias is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    return _float(weight.flatten(0, 1), bias, Geometry(kernel, a.stride, padding, dilation, groups), one)


def _with_transposed(first: Convolution, second: Convolution, most: float) -> Convolution | None:
    """Compose a transposed convolution and one of one tap."""
    up, flat = (first, second) if first.geometry.transposed else (second, first)
    walk = flat.geometry
    if walk.transposed or walk.groups > 1 or up.geometry.groups > 1 or not _is_plain(walk):
        return None
    small = flat.weight.double().flatten(1)
    if up is second:
        if first.bias is not None and bool(first.bias.any()):
            return None  # what overlaps, or is left out, at each place would have a bias of its own
        weight, bias = torch.einsum("mi,mo...->io...", small, up.weight.double()), second.bias
    else:
        weight = torch.einsum("im...,om->io...", up.weight.double(), small)
        bias = None if second.bias is None else second.bias.double()
        if first.bias is not None:
            bias = small @ first.bias.double() + (0 if bias is None else bias)
    return None if weight.numel() > most else _float(weight, bias, up.geometry, first)


def _is_plain(walk: Geometry) -> bool:
    """Whether a convolution takes every place by itself."""
    return walk.taps == 1 and not any(walk.padding) and all(s == 1 for s in walk.stride)


def _shrinks(walk: Geometry) -> list[int]:
    """Return by how much an image becomes smaller along each axis, strides aside."""
    return [d * (k - 1) - 2 * p for k, d, p in zip(walk.kernel, walk.dilation, walk.padding, strict=True)]


def _grid(steps: Sequence[Sequence[int]], last: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return kernel and dilation, per axis, of the coarsest grid that holds the taps up to the last."""
    dilation = tuple(math.gcd(*(distance for distance in axis if distance)) or 1 for axis in zip(*steps, strict=True))
    return tuple(end // d + 1 for end, d in zip(last, dilation, strict=True)), dilation


def _reach(kernel: Sequence[int], step: Sequence[int]) -> list[int]:
    """Return where the last tap lies along each axis, the first at 0."""
    return [(size - 1) * d for size, d in zip(kernel, step, strict=True)]


def _between(kernel: Sequence[int], step: Sequence[int]) -> list[int]:
    """Return the distance of taps along each axis; 0 where there is one."""
    return [d if size > 1 else 0 for size, d in zip(kernel, step, strict=True)]


def _blocks(convolution: Convolution, groups: int) -> Tensor:
    """Return a weight as (groups, outputs, inputs, *kernel) of fewer, larger groups, zeros between the smaller ones."""
    weight, own = convolution.weight.double(), convolution.geometry.groups
    parts = weight.reshape(groups, own // groups, weight.shape[0] // own, *weight.shape[1:])
    size = own // groups
    blocks = weight.new_zeros((groups, size, parts.shape[2], size, *parts.shape[3:]))
    for k in range(size):
        blocks[:, k, :, k] = parts[:, k]
    return blocks.flatten(1, 2).flatten(2, 3)


def _taps(kernel: Iterable[int]) -> Iterable[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in kernel))


def _at(tap: Iterable[int]) -> tuple[Any, ...]:
    """Return the index of all that a tap's weights are."""
    return (..., *tap)


def _float(weight: Tensor, bias: Tensor | None, geometry: Geometry, like: Convolution) -> Convolution:
    dtype = like.weight.dtype
    return Convolution(weight.to(dtype), None if bias is None else bias.to(dtype), geometry)
