"""Rounding of weight matrices that makes up for each column's error in the columns not yet rounded.

Source: Frantar et al., "GPTQ", ICLR 2023, algorithm 1; the rule is that of Optimal Brain Quantization (Frantar and
Alistarh, NeurIPS 2022, equation 7) with one order of columns for all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

MORE_DAMPING = 10.0  # factor for each time that the matrix is still not positive definite
ATTEMPTS = 8


def round_columns(
    weight: Tensor,
    hessian: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    damping: float = 0.01,
    block: int = 128,
    by_size: bool = True,
) -> Tensor:
    """Round matrices to their rows' grids so that the squared error of `inputs @ weightᵀ` is small.

    Columns whose inputs are always zero are rounded to the nearest.

    Args:
        weight: (G, R, C), one matrix per group.
        hessian: (G, C, C), inputsᵀ @ inputs up to a factor.
        scale: (G, R).
        zero_point: (G, R).
        limits: smallest and largest integer of the grid.
        damping: added to the diagonal, as a share of its mean over inputs that are not always zero.
        block: columns between two updates of all the columns that follow.
        by_size: round columns with large inputs first, while there are many left to make up for them.

    Returns:
        Integers (G, R, C), float64.

    Raises:
        ValueError: the Hessian holds NaN or infinity.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the Hessian holds NaN or infinity")
    weight, hessian = weight.double().clone(), hessian.double().clone()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal[diagonal <= 0] = 0
    order = torch.arange(weight.shape[2], device=weight.device).expand(weight.shape[0], -1)
    if by_size:
        order = diagonal.argsort(dim=1, descending=True, stable=True)
        weight = weight.gather(2, order[:, None].expand_as(weight))
        hessian = hessian.gather(1, order[:, :, None].expand_as(hessian))
        hessian = hessian.gather(2, order[:, None].expand_as(hessian))
    factor = _inverse_factor(hessian, damping)
    scale, zero_point = scale.double(), zero_point.double()
    integers = torch.empty_like(weight)
    width = weight.shape[2]
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = torch.empty_like(weight[..., start:stop])
        for j in range(start, stop):
            column = weight[..., j]
            integer = ((column / scale).round() + zero_point).clamp(*limits)
            integers[..., j] = integer
            error = (column - (integer - zero_point) * scale) / factor[:, j, j, None]
            weight[..., j + 1 : stop] -= error[..., None] * factor[:, None, j, j + 1 : stop]
            errors[..., j - start] = error
        weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return torch.empty_like(integers).scatter_(2, order[:, None].expand_as(integers), integers)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of each inverse, (G, C, C); damped more where that is needed."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    mean = diagonal.sum(1, keepdim=True) / (~dead).sum(1, keepdim=True).clamp(min=1)
    for attempt in range(ATTEMPTS):
        share = max(damping, 1e-8 if attempt else 0.0) * MORE_DAMPING**attempt
        damped = hessian.clone()
        damped.diagonal(dim1=1, dim2=2).add_(torch.where(dead, torch.ones_like(mean), share * mean))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed.any()):
            continue
        inverse = torch.cholesky_inverse(lower)
        upper: Tensor
        upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not bool(failed.any()) and bool(torch.isfinite(upper).all()):
            return upper
    return torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device).expand_as(hessian)
