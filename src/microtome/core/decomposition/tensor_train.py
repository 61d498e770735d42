"""Tensor trains: a 1×1 convolution, one convolution along each axis, and a 1×1 convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.core.decomposition.factor import Factor
from microtome.core.decomposition.tensors import energies


def tensor_train(tensor: Tensor, ranks: tuple[int, ...]) -> tuple[Factor, ...]:
    """Return a tensor train of a kernel by successive truncated singular value decompositions (TT-SVD).

    The modes are inputs, the kernel's axes longer than 1 in order, outputs. Source: Oseledets, "Tensor-Train
    Decomposition", SIAM J. Sci. Comput. 33, 2011, algorithm 1; as a chain of convolutions: Garipov et al.,
    arXiv:1611.03214.

    Args:
        tensor: (outputs, inputs, *kernel), at least one axis of the kernel longer than 1.
        ranks: channels between the links, of one more than there are such axes.

    Returns:
        `first`, `axis1`, …, `last`. The first axis also walks along those of size 1.
    """
    walked, modes, rest = _modes(tensor)
    cores = []
    before = 1
    for size, wanted in zip(modes[:-1], ranks, strict=True):
        u, s, vh = torch.linalg.svd(rest.reshape(before * size, -1), full_matrices=False)
        rank = min(wanted, len(s))
        cores.append(u[:, :rank].reshape(before, size, rank))
        rest = s[:rank, None] * vh[:rank]
        before = rank
    dims = tensor.ndim - 2
    ones = (1,) * dims
    single = tuple(axis for axis in range(dims) if axis not in walked)
    first = Factor("first", cores[0][0].T.reshape(-1, modes[0], *ones))
    links = []
    for place, (axis, core) in enumerate(zip(walked, cores[1:], strict=True)):
        places = (*ones[:axis], core.shape[1], *ones[axis + 1 :])
        weight = core.permute(2, 0, 1).reshape(core.shape[2], core.shape[0], *places)
        links.append(Factor(f"axis{axis + 1}", weight, (axis, *(single if place == 0 else ()))))
    return first, *links, Factor("last", rest.T.reshape(modes[-1], -1, *ones))


def train_energies(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the squared singular values that each bond of the train truncates, the largest first."""
    _, modes, rest = _modes(tensor)
    found, left = [], 1
    for size in modes[:-1]:
        left *= size
        found.append(energies(rest.reshape(left, -1)))
    return tuple(found)


def train_parameters(shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """Return the number of weights of a tensor train of a kernel of a shape."""
    outputs, inputs, *kernel = shape
    modes = [inputs, *(size for size in kernel if size > 1), outputs]
    bonds = [1, *ranks, 1]
    return sum(a * size * b for a, size, b in zip(bonds, modes, bonds[1:], strict=False))


def _modes(tensor: Tensor) -> tuple[tuple[int, ...], list[int], Tensor]:
    """Return the axes longer than 1, the sizes of all modes, and the kernel with its modes in order."""
    walked = tuple(axis for axis, size in enumerate(tensor.shape[2:]) if size > 1)
    ordered = tensor.flatten(2).movedim(0, -1)
    modes = [int(tensor.shape[1]), *(int(tensor.shape[2 + axis]) for axis in walked), int(tensor.shape[0])]
    return walked, modes, ordered.reshape(modes)
