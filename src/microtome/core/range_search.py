"""Ranges of weights, per channel, by search on the values themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.types import QParams, QType

STEPS = 50  # candidates between the full range and the smallest share of it
SMALLEST_SHARE = 0.5  # weights of 8 bits rarely want to be clipped further
SMALLEST_SHARE_OF_FEW_BITS = 0.1


def channel_extremes(weight: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value per channel, shape (C,), or of the whole tensor, shape ()."""
    if axis is None:
        return weight.amin(), weight.amax()
    rows = weight.movedim(axis, 0).flatten(1)
    return rows.amin(1), rows.amax(1)


def weight_qparams(weight: Tensor, qtype: QType, *, search: bool = False) -> QParams:
    """Place a weight tensor's grid: over its extremes, or (search) where the squared error is least.

    Args:
        weight: any shape.
        qtype: the number format; `axis` says which dimension has scales of its own.
        search: try ranges shrunk towards zero, channel by channel, and keep each channel's best.

    Returns:
        Grid with scale of shape (C,) or ().
    """
    weight = weight.detach().float()
    low, high = channel_extremes(weight, qtype.axis)
    best = qparams_from_range(low, high, qtype)
    if not search:
        return best
    least = _error(weight, best)
    smallest = SMALLEST_SHARE if qtype.bits >= 8 else SMALLEST_SHARE_OF_FEW_BITS
    for share in torch.linspace(1, smallest, STEPS)[1:].tolist():
        candidate = qparams_from_range(low * share, high * share, qtype)
        error = _error(weight, candidate)
        better = error < least
        least = torch.where(better, error, least)
        best = QParams(
            torch.where(better, candidate.scale, best.scale),
            torch.where(better, candidate.zero_point, best.zero_point),
            qtype,
        )
    return best


def _error(weight: Tensor, qparams: QParams) -> Tensor:
    """Summed squared error per channel."""
    difference = (fake_quantize(weight, qparams) - weight).double().square()  # float32 ends at squares of 1e-23
    axis = qparams.qtype.axis
    return difference.sum() if axis is None else difference.movedim(axis, 0).flatten(1).sum(1)
