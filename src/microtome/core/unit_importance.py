"""How much whole units matter (channels, heads): each function returns one score per unit, the smallest go first."""

from __future__ import annotations

import torch
from torch import Tensor

RANK = 1e-3  # of the largest singular value: what is smaller counts as zero


def l1(rows: Tensor) -> Tensor:
    """Return the sum of magnitudes of the weights that make each unit; (units, values) → (units,).

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    """
    return rows.abs().sum(1)


def l2(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of the weights that make each unit; (units, values) → (units,)."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norm


def geometric_median(rows: Tensor) -> Tensor:
    """Return the summed distance of each unit's weights to those of all others: the nearest are the most redundant.

    Source: He et al., "Filter Pruning via Geometric Median" (FPGM), CVPR 2019, equation 6; (units, values) → (units,).
    """
    return torch.cdist(rows.double(), rows.double()).sum(1).to(rows.dtype)


def first_order(mean_size: Tensor) -> Tensor:
    """Return the mean over batches of |Σ w ∂L/∂w|, the sum over all weights that read a unit; (units,).

    That is the gradient of a gate on the unit. Source: Molchanov et al., "Importance Estimation for Neural Network
    Pruning", CVPR 2019, equation 8, without the square.
    """
    return mean_size


def second_order(mean_square: Tensor) -> Tensor:
    """Return half of the mean square of a gate's gradient: what the loss grows by to second order; (units,).

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, arXiv:1801.05787,
    equation 7.
    """
    return mean_square / 2


def activity(values: Tensor, threshold: float) -> Tensor:
    """Return the share of a unit's values whose magnitude exceeds a threshold; (units, values) → (units,).

    Source: Hu et al., "Network Trimming", 2016, arXiv:1607.03250, equation 1 (average percentage of zeros), with a
    threshold that also serves activation functions that are never exactly zero.
    """
    return (values.abs() > threshold).float().mean(1)


def map_rank(maps: Tensor) -> Tensor:
    """Return the mean rank of each unit's maps; (N, units, A, B) → (units,).

    Source: Lin et al., "HRank", CVPR 2020, equation 5. Singular values below `RANK` of the largest count as zero, since
    in floats all ranks are full.
    """
    values: Tensor = torch.linalg.svdvals(maps.double())
    return (values > RANK * values[..., :1]).sum(-1).double().mean(0)


def normalised(scores: Tensor) -> Tensor:
    """Return scores over their mean, so that groups of other sizes and scales compare; zeros stay zeros.

    Source: Fang et al., "DepGraph", CVPR 2023, section 3.3; without it, global ranking empties the layers whose weights
    are small by nature (Molchanov et al., ICLR 2017, section 2.2).
    """
    mean = scores.mean()
    return scores / mean if float(mean) > 0 else scores
