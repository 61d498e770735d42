"""Moments of normal variables behind an activation function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_DEVIATION = 1e-12


def rectified_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the mean of max(x, 0) for normal x: mean * Phi(mean / deviation) + deviation * phi(mean / deviation).

    Args:
        mean: of x, any shape.
        deviation: of x, at least 0, same shape.

    Returns:
        Same shape.
    """
    deviation = deviation.clamp(min=SMALLEST_DEVIATION)
    z = mean / deviation
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    share: Tensor = torch.special.ndtr(z)
    return mean * share + deviation * density
