"""Least squares for what is left of a matrix when some of its entries are zero."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the residual, relative to its first value: weights are float32


def damped(hessian: Tensor, share: float) -> Tensor:
    """Return matrices (G, C, C) in float64 with a share of their mean diagonal added to it; 1 where that is 0.

    Raises:
        ValueError: they hold NaN or infinity.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the Hessian holds NaN or infinity")
    result = hessian.double().clone()
    diagonal = result.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal.add_(torch.where(mean > 0, share * mean, torch.ones_like(mean)))
    return result


def inverse_diagonal(hessian: Tensor) -> Tensor:
    """Return the diagonal of the inverse of symmetric, positive definite matrices; (G, C, C) → (G, C).

    Raises:
        ValueError: a matrix is not positive definite.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if bool(failed.any()):
        raise ValueError("the Hessian is not positive definite")
    return torch.cholesky_inverse(lower).diagonal(dim1=1, dim2=2)


def refit(weight: Tensor, mask: Tensor, hessian: Tensor, steps: int = 100) -> Tensor:
    """Return the matrix of zeros outside of the mask whose product with the inputs is nearest to that of `weight`.

    Minimises (v − w) H (v − w)ᵀ for each row, over the entries v that the mask keeps: all the updates of the Optimal
    Brain Surgeon for that mask at once (Hassibi and Stork, NeurIPS 1992, equation 5; Frantar and Alistarh, "Optimal
    Brain Compression", NeurIPS 2022, section 4). Solved for all rows together by conjugate gradients, preconditioned by
    the diagonal (Hestenes and Stiefel, 1952): each step lowers the error.

    Args:
        weight: (G, R, C), one matrix per group.
        mask: likewise.
        hessian: (G, C, C), positive definite: inputsᵀ @ inputs up to a factor, damped.
        steps: at most.

    Returns:
        (G, R, C), float64.
    """
    hessian = hessian.double()
    wanted = weight.double()
    found = wanted * mask
    scale = 1 / hessian.diagonal(dim1=1, dim2=2)[:, None]
    residual = ((wanted - found) @ hessian) * mask
    ahead = residual * scale
    direction = ahead
    size = (residual * ahead).sum(-1, keepdim=True)
    goal = size * TOLERANCE**2
    for _ in range(steps):
        open_rows = size > goal
        if not bool(open_rows.any()):
            break
        along = direction @ hessian
        bend = (direction * along).sum(-1, keepdim=True)
        step = torch.where(open_rows, size / bend.clamp(min=torch.finfo(bend.dtype).tiny), torch.zeros_like(size))
        found = found + step * direction
        residual = residual - step * along * mask
        ahead = residual * scale
        before, size = size, (residual * ahead).sum(-1, keepdim=True)
        direction = ahead + torch.where(open_rows, size / before, torch.zeros_like(size)) * direction
    return found
