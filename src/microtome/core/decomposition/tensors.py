"""What all decompositions share: unfolding, products along an axis, leading subspaces."""

from __future__ import annotations

import torch
from torch import Tensor


def unfold(tensor: Tensor, axis: int) -> Tensor:
    """Return a tensor as a matrix whose rows lie along an axis: (sizes[axis], product of the others).

    Source: Kolda and Bader, "Tensor Decompositions and Applications", SIAM Review 2009, section 2.4.
    """
    return tensor.movedim(axis, 0).flatten(1)


def times(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Return the product of a matrix (rows, sizes[axis]) and a tensor along an axis (Kolda and Bader, section 2.5)."""
    product: Tensor = torch.tensordot(matrix, tensor, dims=([1], [axis]))
    return product.movedim(0, axis)


def leading(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors of a matrix: (rows, rank), orthonormal.

    They are the eigenvectors of its Gram matrix, which is smaller where the matrix is wide.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left: Tensor = torch.linalg.svd(matrix, full_matrices=False)[0]
        return left[:, :rank]
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T)[1]
    return vectors.flip(1)[:, :rank]


def energies(matrix: Tensor) -> Tensor:
    """Return the squared singular values of a matrix, the largest first: as many as its smaller side."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp(min=0)
