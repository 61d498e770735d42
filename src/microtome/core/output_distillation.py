"""Further ways to say how far a student's output is from its teacher's; see `core.distillation` for the usual one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def logit_error(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of logits over the teacher's variance.

    Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, equation 1; relative here, so that it has
    no unit.

    Args:
        student: (N, K, *S).
        teacher: same shape.
        weights: (N, *S), of each place; None weighs all alike.

    Returns:
        Scalar, 0 where both agree, 1 for a student that says the teacher's mean everywhere.
    """
    each = (student.float() - teacher.float()).square().mean(1)
    mean = each.mean() if weights is None else (each * weights).sum() / weights.sum().clamp(min=1e-12)
    return mean / teacher.float().var(correction=0).clamp(min=1e-4)


def channelwise(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the mean divergence of where in the image each channel is active.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, equations 3 and 4: a
    softmax over the places of each channel.

    Args:
        student: activations (N, C, *S): logits, or features of as many channels.
        teacher: same shape.
        temperature: above 1 looks at more of the image.

    Returns:
        Scalar, at least 0: mean over batch and channels, times the squared temperature.
    """
    log_p = (student.float().flatten(2) / temperature).log_softmax(2)
    log_q = (teacher.float().flatten(2) / temperature).log_softmax(2)
    return (log_q.exp() * (log_q - log_p)).sum(2).mean() * temperature**2


def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float = 1.0, others: float = 8.0
) -> Tensor:
    """Return the divergence between target and the rest, plus that among the rest, which gets a weight of its own.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7 with alpha 1.

    Args:
        student: logits (N, K, *S), K at least 2.
        teacher: same shape.
        target: the class of each place (N, *S), int64.
        temperature: above 1 softens both.
        others: weight of the classes that are not the target; beta in the paper.

    Returns:
        Scalar, at least 0.
    """
    log_p, log_q = ((v.float() / temperature).log_softmax(1) for v in (student, teacher))
    chosen = functional.one_hot(target, student.shape[1]).movedim(-1, 1).bool()

    def split(logs: Tensor) -> tuple[Tensor, Tensor]:
        rest = logs.masked_fill(chosen, -torch.inf)
        total = rest.logsumexp(1, keepdim=True)
        both = torch.cat([logs.masked_fill(~chosen, -torch.inf).logsumexp(1, keepdim=True), total], 1)
        return both, (rest - total).masked_fill(chosen, 0.0)

    (both_p, rest_p), (both_q, rest_q) = split(log_p), split(log_q)
    of_target = (both_q.exp() * (both_q - both_p)).sum(1).mean()
    of_rest = (rest_q.exp() * (rest_q - rest_p)).masked_fill(chosen, 0.0).sum(1).mean()
    return (of_target + others * of_rest) * temperature**2


def mean_teacher(logits: list[Tensor], *, sigmoid: bool = False) -> Tensor:
    """Return logits of the mean of several teachers' probabilities.

    Args:
        logits: of each teacher, (N, K, *S); at least one.
        sigmoid: channels are probabilities of their own. One channel always is.
    """
    if len(logits) == 1:
        return logits[0]
    if sigmoid or logits[0].shape[1] == 1:
        # both sides in logarithms, so that what is nearly certain stays finite
        yes = torch.stack([functional.logsigmoid(one.float()) for one in logits]).logsumexp(0)
        no = torch.stack([functional.logsigmoid(-one.float()) for one in logits]).logsumexp(0)
        return yes - no
    return torch.stack([one.float().log_softmax(1) for one in logits]).logsumexp(0)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return weights with which each class of a batch counts as much as any other that is there.

    Args:
        labels: (N, *S), int64, below `classes`.
        classes: how many there may be.

    Returns:
        (N, *S), mean 1.
    """
    counts = torch.bincount(labels.flatten(), minlength=classes).float()
    present = counts > 0
    each = torch.where(present, labels.numel() / (counts.clamp(min=1) * present.sum()), 0.0)
    return each[labels]


def boundary_weights(labels: Tensor, *, extra: float, width: int = 2) -> Tensor:
    """Return weights that are larger near borders between labels.

    Args:
        labels: (N, *S), int64, with one to three axes of space.
        extra: what a place near a border weighs beyond the others' 1.
        width: how far from a border, in pixels, counts as near (in the maximum norm).

    Returns:
        (N, *S), mean 1.
    """
    values = labels[:, None].float()
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[labels.ndim - 1]
    size = 2 * width + 1
    highest, lowest = pool(values, size, 1, width), -pool(-values, size, 1, width)
    weights = 1 + extra * (highest != lowest)[:, 0].float()
    return weights / weights.mean()
