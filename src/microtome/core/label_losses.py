"""What a network should lose when it differs from references. What has no reference does not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

UNKNOWN = -1
"""In label maps and classes: no reference here."""
SMALLEST = 1e-6  # probability that counts as one
SMOOTH = 1.0  # of the soft Dice: keeps empty structures from dividing by zero


def class_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy.

    Args:
        output: logits (N, K).
        target: classes (N,), int64; `UNKNOWN` where there is none.

    Returns:
        Scalar; 0 where no case has a reference.
    """
    return _entropy(output, target)


def classes_apart_loss(output: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the binary cross-entropy of classes that are scored apart: like `answers_loss`, from class numbers.

    Args:
        output: logits (N, K); K is `classes`, or one fewer where the first has no channel.
        target: classes (N,), int64; `UNKNOWN` where there is none.
        classes: how many there are.
    """
    wanted = functional.one_hot(target.clamp(min=0), classes)[:, classes - output.shape[1] :].to(output.dtype)
    return answers_loss(output, wanted.where(target[:, None] != UNKNOWN, torch.nan))


def answers_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of questions that are answered apart.

    Args:
        output: logits (N, K).
        target: 0 or 1 (N, K); NaN where there is none.

    Returns:
        Scalar; 0 where no question has a reference.
    """
    known = ~target.isnan()
    losses = functional.binary_cross_entropy_with_logits(output, target.where(known, 0.0), reduction="none")
    return _mean(losses, known)


def numbers_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over (N, K), where there is a reference (it is NaN where there is none)."""
    known = ~target.isnan()
    return _mean((output - target.where(known, 0.0)).square(), known)


def map_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy plus one minus the soft Dice of structures, as nnU-Net trains (Isensee et al., 2021).

    The background, channel 0, has no Dice. Dice counts over the whole batch, with squared probabilities in the
    denominator (Milletari et al., "V-Net", 3DV 2016).

    Args:
        output: logits (N, K, *S).
        target: label maps (N, *S), int64; `UNKNOWN`, or any other number that is no channel's, where there is none.

    Returns:
        Scalar; 0 where no voxel has a reference.
    """
    known = (target >= 0) & (target < output.shape[1])
    target = target.where(known, UNKNOWN)
    wanted = functional.one_hot(target.clamp(min=0), output.shape[1]).movedim(-1, 1)
    dice = _dice(output.softmax(1)[:, 1:], wanted[:, 1:].to(output.dtype), known)
    return _entropy(output, target) + dice * known.any()


def region_loss(output: Tensor, target: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Return binary cross-entropy plus one minus the soft Dice of regions that may overlap; see `map_loss`.

    Args:
        output: logits (N, K, *S).
        target: label maps (N, *S), int64; `UNKNOWN` where there is none.
        regions: K times the labels that a region consists of.

    Returns:
        Scalar; 0 where no voxel has a reference.
    """
    known = target != UNKNOWN
    labels = [torch.tensor(list(numbers), device=target.device) for numbers in regions]
    wanted = torch.stack([torch.isin(target, numbers) for numbers in labels], 1).to(output.dtype)
    losses = functional.binary_cross_entropy_with_logits(output, wanted, reduction="none").mean(1)
    return _mean(losses, known) + _dice(output.sigmoid(), wanted, known) * known.any()


def logits(chances: Tensor, *, apart: bool) -> Tensor:
    """Return probabilities (N, K, *S) as logits: of a softmax, or of each channel for itself (`apart`)."""
    chances = chances.clamp(SMALLEST, 1 - SMALLEST)
    return chances.logit() if apart else chances.log()


def structures(classes: int, channels: int, regions: Mapping[str, Sequence[int]] | None) -> list[Sequence[int]]:
    """Return the labels of each channel of a network whose channels are probabilities of their own.

    Args:
        classes: number of classes, the background included.
        channels: of the output; one fewer than classes where the background has none.
        regions: declared regions, in the order of channels.
    """
    if regions is not None:
        return list(regions.values())
    return [[label] for label in range(classes - channels, classes)]


def _entropy(output: Tensor, target: Tensor) -> Tensor:
    losses = functional.cross_entropy(output, target, ignore_index=UNKNOWN, reduction="none")
    return _mean(losses, target != UNKNOWN)


def _dice(found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Return one minus the soft Dice, mean over structures: (N, K, *S) twice, and where they count, (N, *S)."""
    dims = [0, *range(2, found.ndim)]
    found, wanted = found * known[:, None], wanted * known[:, None]
    total = (found.square() + wanted).sum(dims)
    return (1 - (2 * (found * wanted).sum(dims) + SMOOTH) / (total + SMOOTH)).mean()


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    """Return the mean where there is a reference; 0 if that is nowhere."""
    return (losses * known).sum() / known.sum().clamp(min=1)
