"""Rounding that can be learned: which of the two neighbours on its grid each weight shall take.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, equations 21 to 25.
"""

from __future__ import annotations

import math

from torch import Tensor

# The sigmoid is stretched to [GAMMA, ZETA] and clipped, so that it reaches 0 and 1.
ZETA, GAMMA = 1.1, -0.1
HIGHEST_BETA, LOWEST_BETA = 20.0, 2.0


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """Return how far each weight is rounded up: in [0, 1], both ends included (equation 23); same shape."""
    return (logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def logits_of(share: Tensor) -> Tensor:
    """Return the logits whose rectified sigmoid is `share`, which lies in [0, 1]; same shape."""
    position = (share - GAMMA) / (ZETA - GAMMA)
    return (position / (1 - position)).log()


def indecision(up: Tensor, beta: float) -> Tensor:
    """Return the mean of 1 - |2h - 1|^beta: 0 where all weights are decided, 1 where none is (equation 24); scalar.

    A large beta leaves weights free to move away from the ends; a small one drives them there.
    """
    return 1 - (2 * up - 1).abs().pow(beta).mean()


def annealed_beta(progress: float, *, warm_up: float = 0.2) -> float | None:
    """Return beta at a share of the optimisation: None while nothing is driven, then from 20 to 2 on half a cosine.

    Args:
        progress: in [0, 1].
        warm_up: share without the regularizer.
    """
    if progress < warm_up:
        return None
    along = (progress - warm_up) / (1 - warm_up)
    return LOWEST_BETA + 0.5 * (HIGHEST_BETA - LOWEST_BETA) * (1 + math.cos(along * math.pi))
