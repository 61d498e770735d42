"""Which weights stay: thresholds, patterns and schedules. A mask is True where the weight is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def percentile(scores: Tensor, share: float) -> Tensor:
    """Return the threshold below which that share of the scores lies: the k-th smallest, k = share · count.

    −infinity where nothing goes.

    Raises:
        ValueError: the share lies outside of 0 to 1.
    """
    count = _count(scores.numel(), share)
    flat = scores.flatten()
    return flat.kthvalue(count).values if count else flat.new_tensor(-torch.inf)


def keep_largest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Return masks that leave out exactly that share of all values together: those with the smallest scores.

    Of equal scores at the threshold those that come first go first.

    Args:
        scores: of one or several tensors that are compared with one another.
        share: of all values, 0 to 1; rounded to whole values.

    Raises:
        ValueError: the share lies outside of 0 to 1.
    """
    flat = torch.cat([s.flatten() for s in scores])
    limit = percentile(flat, share)
    kept = flat > limit
    spare = _count(flat.numel(), share) - int((flat < limit).sum())  # of the equals, so many go
    kept[(flat == limit).nonzero()[spare:]] = True
    parts = torch.split(kept, [s.numel() for s in scores])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def keep_of_each(scores: Tensor, kept: int, block: int, axis: int = 1) -> Tensor:
    """Return an N:M mask: of each `block` consecutive values along an axis the `kept` with the largest scores stay.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, section 3.1 (2:4). A last block
    that is shorter keeps as many.

    Raises:
        ValueError: not 0 < kept < block.
    """
    if not 0 < kept < block:
        raise ValueError(f"{kept} of {block} is no pattern")
    along = scores.movedim(axis, -1)
    length = along.shape[-1]
    missing = -length % block
    padded = torch.nn.functional.pad(along, (0, missing), value=-torch.inf) if missing else along
    blocks = padded.reshape(*along.shape[:-1], -1, block)
    best = blocks.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, best, True)
    return mask.flatten(-2)[..., :length].movedim(-1, axis)


def scheduled(stage: int, stages: int, start: float, end: float, shape: Literal["cubic", "linear"] = "cubic") -> float:
    """Return the share of zeros after a stage of several, from `start` (stage 0) to `end` (the last).

    Cubic: end + (start − end) (1 − stage / stages)³, fast while there is much to take and slow at the end (Zhu and
    Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1).

    Raises:
        ValueError: the stage lies outside of 0 to `stages`.
    """
    if not 0 <= stage <= stages or stages < 1:
        raise ValueError(f"there is no stage {stage} of {stages}")
    return end + (start - end) * (1 - stage / stages) ** (3 if shape == "cubic" else 1)


def _count(values: int, share: float) -> int:
    if not 0 <= share <= 1:
        raise ValueError(f"{share} is no share")
    return round(values * share)
