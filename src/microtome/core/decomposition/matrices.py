"""Kernels as products of two: truncated singular value decompositions."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.core.decomposition.factor import Factor
from microtome.core.decomposition.tensors import energies


def split(tensor: Tensor, rank: int, front: tuple[int, ...] | None = None) -> tuple[Factor, Factor]:
    """Return the best two convolutions, one after the other, with so many channels between them.

    The singular vectors of the kernel as a matrix: (inputs and the kernel's axes that the first walks) × (outputs and
    the axes that the second walks). All axes in front: a full kernel and a 1×1 one (Zhang et al., "Accelerating Very
    Deep Convolutional Networks", TPAMI 2016, section 3.1). Some in front: the spatial form (Jaderberg et al., "Speeding
    up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2). A matrix: two linear layers.

    Args:
        tensor: (outputs, inputs, *kernel).
        rank: channels between the two.
        front: spatial axes that the first walks, from 0; None all.

    Returns:
        The two factors, of equal norms.
    """
    dims = tensor.ndim - 2
    front = tuple(range(dims)) if front is None else front
    behind = tuple(axis for axis in range(dims) if axis not in front)
    matrix = _matrix(tensor, front)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank].sqrt(), vh[:rank]
    sizes = tensor.shape[2:]
    first = (s[:, None] * vh).reshape(len(s), tensor.shape[1], *(n if a in front else 1 for a, n in enumerate(sizes)))
    last = (u * s).reshape(tensor.shape[0], *(sizes[a] for a in behind), len(s)).movedim(-1, 1)
    last = last.reshape(tensor.shape[0], len(s), *(n if a in behind else 1 for a, n in enumerate(sizes)))
    return Factor("first", first, front), Factor("last", last, behind)


def split_energies(tensor: Tensor, front: tuple[int, ...] | None = None) -> Tensor:
    """Return the squared singular values that `split` truncates, the largest first."""
    front = tuple(range(tensor.ndim - 2)) if front is None else front
    return energies(_matrix(tensor, front))


def split_sides(shape: tuple[int, ...], front: tuple[int, ...] | None = None) -> tuple[int, int]:
    """Return the rows and columns of the matrix that `split` decomposes: a rank costs their sum of weights."""
    rows, columns = shape[:2]
    for axis, size in enumerate(shape[2:]):
        if front is None or axis in front:
            columns *= size
        else:
            rows *= size
    return rows, columns


def _matrix(tensor: Tensor, front: tuple[int, ...]) -> Tensor:
    """Return the kernel as a matrix: rows (outputs, axes behind), columns (inputs, axes in front)."""
    behind = [2 + axis for axis in range(tensor.ndim - 2) if axis not in front]
    order = (0, *behind, 1, *(2 + axis for axis in front))
    columns = split_sides(tuple(tensor.shape), front)[1]
    return tensor.permute(order).reshape(-1, columns)
