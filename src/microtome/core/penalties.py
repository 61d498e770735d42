"""Penalties that draw weights, or groups of them, to zero while a network is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def lasso(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum of all magnitudes (Tibshirani, 1996); of norm scales alone it is network slimming's penalty (Liu
    et al., ICCV 2017, equation 1).

    Args:
        weights: tensors of any shapes; at least one.

    Returns:
        Scalar.
    """
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


@dataclass(frozen=True, eq=False)
class Part:
    """Where a group's units lie in one weight.

    Attributes:
        weight: the tensor.
        axis: along which the units lie.
        units: int64, one entry per index of that axis: the unit that it belongs to; -1 for none.
    """

    weight: Tensor
    axis: int
    units: Tensor


def group_lasso(groups: Iterable[Sequence[Part]]) -> Tensor:
    """Return the sum over all units of the length of all their weights, taken together as one vector.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006, equation 2.1;
    over rows of layers it is Wen et al., NeurIPS 2016, equation 3.

    Args:
        groups: each as its parts, which number the same units; at least one group with one part.

    Returns:
        Scalar.
    """
    return torch.stack([unit_lengths(parts).sum() for parts in groups]).sum()


def unit_lengths(parts: Sequence[Part]) -> Tensor:
    """Return the Euclidean length of each unit's weights in a group: (units,). It has a gradient of 0 at 0."""
    count = max(int(part.units.max()) for part in parts) + 1
    squares = parts[0].weight.new_zeros(count)
    for part in parts:
        rows = part.weight.movedim(part.axis, 0).flatten(1) if part.weight.ndim > 1 else part.weight[:, None]
        known = part.units >= 0
        squares = squares.index_add(0, part.units[known], rows.square().sum(1)[known])
    alive = squares > 0
    return torch.where(alive, squares.where(alive, 1.0).sqrt(), 0.0)
