"""Rounding that can be learned: which of the two neighbours on its grid each weight shall take.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, equations 21 to 25.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The sigmoid is stretched to [GAMMA, ZETA] and clipped, so that it reaches 0 and 1.
ZETA, GAMMA = 1.1, -0.1
HIGHEST_BETA, LOWEST_BETA = 20.0, 2.0


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """Return how far each weight is rounded up: in [0, 1], both ends included (equation 23); same shape."""
    return rectified(logits.sigmoid())


def rectified(sigmoid: Tensor, out: Tensor | None = None) -> Tensor:
    """Stretch a sigmoid and clip it to [0, 1]; same shape."""
    return torch.mul(sigmoid, ZETA - GAMMA, out=out).add_(GAMMA).clamp_(0, 1)


def logits_of(share: Tensor) -> Tensor:
    """Return the logits whose rectified sigmoid is `share`, which lies in [0, 1]; same shape."""
    position = (share - GAMMA) / (ZETA - GAMMA)
    return (position / (1 - position)).log()


def indecision(up: Tensor, beta: float) -> Tensor:
    """Return the mean of 1 - |2h - 1|^beta: 0 where all weights are decided, 1 where none is (equation 24); scalar.

    A large beta leaves weights free to move away from the ends; a small one drives them there.
    """
    return 1 - (2 * up - 1).abs().pow(beta).mean()


def gradient_of_logits(pull: Tensor, sigmoid: Tensor, up: Tensor) -> Tensor:
    """Return the gradient of logits from that of the rectified sigmoid: the chain rule through equation 23; same shape.

    Args:
        pull: gradient of the share that is rounded up; written into.
        sigmoid: of the logits.
        up: their rectified sigmoid. Where it has reached an end, nothing passes.
    """
    inside = torch.ops.aten.hardtanh_backward(pull, up, 0.0, 1.0)
    gradient: Tensor = torch.ops.aten.sigmoid_backward(inside.mul_(ZETA - GAMMA), sigmoid)
    return gradient


def gradient_of_indecision(up: Tensor, beta: float) -> Tensor:
    """Return the derivative of each weight's 1 - |2h - 1|^beta by its h; same shape."""
    signed = (2 * up).sub_(1)
    return signed.abs().pow_(beta - 1).copysign_(signed).mul_(-2 * beta)


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
