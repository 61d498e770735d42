"""What a student should lose when it differs from its teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1.0  # of the soft Dice: keeps empty structures from dividing by zero


def divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    sigmoid: bool = False,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the student's probabilities from the teacher's.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2; scaled with the
    squared temperature.

    Args:
        student: logits (N, K, *S) or (N, K).
        teacher: logits, same shape.
        sigmoid: each channel is a probability of its own, instead of a softmax over channels. One channel always is.
        temperature: above 1 softens both.
        weights: (N, *S), at least 0, of each place; None weighs all alike.

    Returns:
        Scalar, at least 0, mean over batch and space.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    if sigmoid or student.shape[1] == 1:
        target = teacher.sigmoid()
        entropy = functional.binary_cross_entropy_with_logits(teacher, target, reduction="none")
        loss = functional.binary_cross_entropy_with_logits(student, target, reduction="none") - entropy
    else:
        log_p, log_q = student.log_softmax(1), teacher.log_softmax(1)
        loss = log_q.exp() * (log_q - log_p)
    each = loss.sum(1)
    mean = each.mean() if weights is None else (each * weights).sum() / weights.sum().clamp(min=1e-12)
    return mean * temperature**2


def soft_dice_loss(student: Tensor, teacher: Tensor, *, sigmoid: bool = False) -> Tensor:
    """Return one minus the soft Dice between both networks' probabilities, mean over structures.

    The background (channel 0 of a softmax) is left out. Both probabilities are soft; the squared form keeps the loss at
    zero where both agree (Milletari et al., "V-Net", 3DV 2016, section 3).

    Args:
        student: logits (N, K, *S).
        teacher: logits, same shape.
        sigmoid: channels are probabilities of their own.

    Returns:
        Scalar in [0, 1]; one Dice per structure over the whole batch, so that a case without it does not count alone.
    """
    sigmoid = sigmoid or student.shape[1] == 1
    p, q = (v.float().sigmoid() if sigmoid else v.float().softmax(1)[:, 1:] for v in (student, teacher))
    dims = [0, *range(2, p.ndim)]
    overlap, total = (p * q).sum(dims), (p.square() + q.square()).sum(dims)
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def distillation_loss(student: Tensor, teacher: Tensor, *, sigmoid: bool = False, temperature: float = 1.0) -> Tensor:
    """Return the default loss of training: divergence, and for label maps the soft Dice loss beside it.

    Args:
        student: logits (N, K, *S) or (N, K).
        teacher: logits, same shape.
        sigmoid: channels are probabilities of their own.
        temperature: of the divergence.

    Returns:
        Scalar, 0 where both agree.
    """
    loss = divergence(student, teacher, sigmoid=sigmoid, temperature=temperature)
    return loss if student.ndim == 2 else loss + soft_dice_loss(student, teacher, sigmoid=sigmoid)


def cosine(step: int, steps: int, *, warm_up: float = 0.05) -> float:
    """Return the share of the full learning rate at a step: a linear warm-up, then half a cosine down to zero.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.
    """
    start = max(1, round(steps * warm_up))
    if step < start:
        return (step + 1) / start
    progress = (step - start) / max(steps - start, 1)
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0)))))
