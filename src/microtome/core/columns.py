"""Convolutions as matrix products: every output position is a column of inputs, every output channel a row of weights.

Columns are gathered for single output positions, so that the whole unfolded image never stands in memory.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """How a layer walks over its input. A linear layer is a convolution without spatial axes.

    Attributes:
        kernel: size per spatial axis; empty for linear layers.
        stride: per axis.
        padding: zeros before the first value, per axis.
        dilation: per axis.
        groups: number of groups.
        transposed: a transposed convolution.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def taps(self) -> int:
        """Number of weights per pair of channels."""
        return math.prod(self.kernel)


def columns(x: Tensor, geometry: Geometry, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return what the layer sees at some output positions.

    Args:
        x: input (N, C, *S); (…, C) for linear layers.
        geometry: of the layer.
        positions: (P,) flat indices into the output's (N, *size); into all but the last axis for linear layers.
        size: the output's spatial size; not used for linear layers.

    Returns:
        (groups, P, C / groups * taps), channels outside, taps inside, as in the weight. `columns @ rows(weight)ᵀ` is
        the output without bias.
    """
    if not geometry.kernel:
        return x.reshape(-1, x.shape[-1])[positions][None]
    image, *places = torch.unravel_index(positions, (x.shape[0], *size))
    spatial = x.shape[2:]
    values = x.movedim(1, -1)
    taken = []
    for tap in itertools.product(*(range(k) for k in geometry.kernel)):
        inside = torch.ones_like(positions, dtype=torch.bool)
        index = []
        for axis, place in enumerate(places):
            stride, padding = geometry.stride[axis], geometry.padding[axis]
            reach = tap[axis] * geometry.dilation[axis]
            if geometry.transposed:
                inside &= (place + padding - reach) % stride == 0
                source = (place + padding - reach) // stride
            else:
                source = place * stride - padding + reach
            inside &= (source >= 0) & (source < spatial[axis])
            index.append(source.clamp(0, spatial[axis] - 1))
        taken.append(torch.where(inside[:, None], values[(image, *index)], values.new_zeros(())))
    gathered = torch.stack(taken, 2)
    return gathered.reshape(len(positions), geometry.groups, -1).movedim(1, 0)


def column_sum(x: Tensor, geometry: Geometry, size: tuple[int, ...]) -> Tensor:
    """Return the sum of a layer's columns over all output positions, without gathering them.

    What a tap sees of the input is a grid of points, the same along each axis whatever the others do: so the image is
    summed along one axis after another, once for each tap there.

    Args:
        x: input (N, C, *S); (…, C) for linear layers.
        geometry: of the layer.
        size: the output's spatial size; not used for linear layers.

    Returns:
        (groups, C / groups * taps) in float64, in the order of `columns`.
    """
    if not geometry.kernel:
        return x.reshape(-1, x.shape[-1]).sum(0, dtype=torch.float64)[None]
    seen = [_seen(geometry, axis, x.shape[2 + axis], size[axis]) for axis in range(len(size))]
    if x.is_contiguous():
        sums = x.flatten(0, 1)
        for axis in reversed(range(len(size))):  # each goes, and one of taps comes at the end
            sums = torch.tensordot(sums, seen[axis].to(sums), dims=([1 + axis], [1])).double()
        taps = sums.permute(0, *reversed(range(1, sums.ndim)))
    else:  # channels last: the outermost axis first, so that the image is read as it lies in memory
        sums = x.movedim((0, 1), (-2, -1)).flatten(-2)
        for axis in range(len(size)):  # each goes, and one of taps comes at the front
            sums = torch.tensordot(seen[axis].to(sums), sums, dims=([1], [axis])).double()
        taps = sums.permute(*reversed(range(sums.ndim)))
    return taps.reshape(x.shape[0], geometry.groups, -1).sum(0)


def _seen(geometry: Geometry, axis: int, length: int, size: int) -> Tensor:
    """Return how often each tap sees each place of the input along an axis; (taps, length)."""
    reach = torch.arange(geometry.kernel[axis])[:, None] * geometry.dilation[axis] - geometry.padding[axis]
    if geometry.transposed:
        place = torch.arange(length) * geometry.stride[axis] + reach
        return ((place >= 0) & (place < size)).float()
    place = torch.arange(size) * geometry.stride[axis] + reach
    inside = ((place >= 0) & (place < length)).float()
    return torch.zeros(len(reach), length).scatter_add_(1, place.clamp(0, length - 1), inside)


def rows(weight: Tensor, geometry: Geometry) -> Tensor:
    """Return a weight as matrices (groups, output channels per group, input channels per group * taps)."""
    groups = geometry.groups
    if not geometry.transposed:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return apart.transpose(1, 2).reshape(groups, weight.shape[1], -1)


def from_rows(matrices: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """Return the weight of the given shape: the inverse of `rows`."""
    if not geometry.transposed:
        return matrices.reshape(shape)
    groups, outputs = matrices.shape[:2]
    return matrices.reshape(groups, outputs, shape[0] // groups, -1).transpose(1, 2).reshape(shape)
