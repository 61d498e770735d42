"""The kinds of decompositions behind one face: which ranks they have, what these cost, and what comes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from microtome.core.decomposition.cp import cp, cp_parameters
from microtome.core.decomposition.factor import Factor, composed
from microtome.core.decomposition.matrices import split, split_energies, split_sides
from microtome.core.decomposition.ranks import rank_of_energy, rounded_rank
from microtome.core.decomposition.tensor_train import tensor_train, train_energies, train_parameters
from microtome.core.decomposition.tucker import tucker, tucker_energies, tucker_parameters
from microtome.core.decomposition.vbmf import vbmf_rank

Ranks = tuple[int, ...]
Shape = tuple[int, ...]
KindName = Literal["svd", "spatial", "tucker", "cp", "tt"]
FINEST = 12.0  # decades of lost energy that ranks are looked for in
HALVINGS = 40
GROWTH = 1.3  # from one rank to the next, where only trying tells what it keeps


@dataclass(frozen=True)
class Kind:
    """One kind of decomposition of kernels (outputs, inputs, *kernel).

    Attributes:
        name: such as `tucker`.
        energies: squared singular values of the matrices that ranks truncate, one for each rank; None where ranks
            truncate none (`cp`).
        sides: rows and columns of these matrices, from the kernel's shape; a rank is at most the smaller one.
        parameters: weights that a kernel of a shape has at some ranks.
        factors: the decomposition at some ranks.
    """

    name: KindName
    energies: Callable[[Tensor], tuple[Tensor, ...]] | None
    sides: Callable[[Shape], tuple[tuple[int, int], ...]]
    parameters: Callable[[Shape, Ranks], int]
    factors: Callable[[Tensor, Ranks], tuple[Factor, ...]]


def kind_for(name: KindName, shape: Shape) -> Kind:
    """Return the kind that a name means for a kernel of a shape.

    Where the kernel has size 1 along all axes, or no axes, all are a split in two (`svd`); where it is longer along one
    axis only, so is the spatial one.
    """
    longer = sum(size > 1 for size in shape[2:])
    if longer == 0 or (name == "spatial" and longer == 1):
        name = "svd"
    return KINDS[name]


def ranks_of_energy(kind: Kind, tensor: Tensor, energy: float, step: int = 1) -> Ranks:
    """Return ranks, as few as the spectra promise, at which a decomposition keeps a share of a kernel's energy.

    Each of n truncations may lose its n-th part of the rest, which bounds what all lose together (De Lathauwer et al.,
    2000, property 10; Oseledets, 2011, theorem 2.2). `cp` promises nothing: it tries growing ranks, up to where it has
    as many weights as the kernel.

    Args:
        kind: of decomposition.
        tensor: (outputs, inputs, *kernel).
        energy: share of the squared norm to keep.
        step: ranks are its multiples, as far as the kernel allows.
    """
    if kind.energies is None:
        return _tried(kind, tensor, energy, step)
    return _at(kind, tuple(tensor.shape), kind.energies(tensor), energy, step)


def ranks_within(
    kind: Kind, shape: Shape, spectra: tuple[Tensor, ...] | None, most: float, step: int = 1
) -> Ranks | None:
    """Return the ranks that keep most energy with at most so many weights; None if even the smallest have more.

    The ranks are balanced: each truncation loses the same share.

    Args:
        kind: of decomposition.
        shape: of the kernel: (outputs, inputs, *kernel).
        spectra: its `kind.energies`, if the kind has any.
        most: weights.
        step: ranks are its multiples, as far as the kernel allows.
    """
    sides = [min(pair) for pair in kind.sides(shape)]
    least = tuple(rounded_rank(1, step, side) for side in sides)
    if kind.parameters(shape, least) > most:
        return None
    if spectra is None:
        each = kind.parameters(shape, (1,))
        return (max(least[0], int(most // each) // step * step),)
    low, high = 0.0, FINEST
    found = least
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        ranks = _at(kind, shape, spectra, 1 - 10**-middle, step)
        if kind.parameters(shape, ranks) <= most:
            low, found = middle, ranks
        else:
            high = middle
    return found


def ranks_of_noise(kind: Kind, tensor: Tensor, step: int = 1) -> Ranks:
    """Return the ranks that variational Bayes finds (see `vbmf`), matrix by matrix.

    `cp` takes the larger of the two that a Tucker decomposition would have.

    Args:
        kind: of decomposition.
        tensor: (outputs, inputs, *kernel), the weights themselves: whitened, their noise is not even.
        step: ranks are its multiples, as far as the kernel allows.
    """
    shape = tuple(tensor.shape)
    matrices = KINDS["tucker"] if kind.energies is None else kind
    assert matrices.energies is not None
    found = [
        rounded_rank(vbmf_rank(energies, *sides), step, min(sides))
        for energies, sides in zip(matrices.energies(tensor), matrices.sides(shape), strict=True)
    ]
    return tuple(found) if kind is matrices else (max(found),)


def lost(tensor: Tensor, factors: tuple[Factor, ...]) -> float:
    """Return the share of a kernel's squared norm that its factors miss."""
    total = float(tensor.square().sum())
    return float((tensor - composed(factors)).square().sum()) / total if total else 0.0


def _at(kind: Kind, shape: Shape, spectra: tuple[Tensor, ...], energy: float, step: int) -> Ranks:
    each = 1 - (1 - energy) / len(spectra)
    return tuple(
        rounded_rank(rank_of_energy(spectrum, each), step, min(sides))
        for spectrum, sides in zip(spectra, kind.sides(shape), strict=True)
    )


def _tried(kind: Kind, tensor: Tensor, energy: float, step: int) -> Ranks:
    shape = tuple(tensor.shape)
    most = max(1, math.prod(shape) // kind.parameters(shape, (1,)))
    rank = rounded_rank(1, step, most)
    while rank < most and lost(tensor, kind.factors(tensor, (rank,))) > 1 - energy:
        rank = rounded_rank(math.ceil(rank * GROWTH), step, most)
    return (rank,)


def _front(shape: Shape) -> tuple[int, ...]:
    """Return the axis that the first of a spatial pair walks: the first that is longer than 1."""
    return (next(axis for axis, size in enumerate(shape[2:]) if size > 1),)


def _unfolded_sides(shape: Shape) -> tuple[tuple[int, int], ...]:
    total = math.prod(shape)
    return tuple((size, total // size) for size in shape[:2])


def _bonds(shape: Shape) -> tuple[tuple[int, int], ...]:
    modes = (shape[1], *(size for size in shape[2:] if size > 1), shape[0])
    return tuple((math.prod(modes[:k]), math.prod(modes[k:])) for k in range(1, len(modes)))


KINDS: dict[str, Kind] = {
    "svd": Kind(
        "svd",
        lambda tensor: (split_energies(tensor),),
        lambda shape: (split_sides(shape),),
        lambda shape, ranks: ranks[0] * sum(split_sides(shape)),
        lambda tensor, ranks: split(tensor, ranks[0]),
    ),
    "spatial": Kind(
        "spatial",
        lambda tensor: (split_energies(tensor, _front(tuple(tensor.shape))),),
        lambda shape: (split_sides(shape, _front(shape)),),
        lambda shape, ranks: ranks[0] * sum(split_sides(shape, _front(shape))),
        lambda tensor, ranks: split(tensor, ranks[0], _front(tuple(tensor.shape))),
    ),
    "tucker": Kind(
        "tucker",
        tucker_energies,
        _unfolded_sides,
        lambda shape, ranks: tucker_parameters(shape, (ranks[0], ranks[1])),
        lambda tensor, ranks: tucker(tensor, (ranks[0], ranks[1])),
    ),
    "cp": Kind(
        "cp",
        None,
        lambda shape: ((math.prod(shape), math.prod(shape)),),
        lambda shape, ranks: cp_parameters(shape, ranks[0]),
        lambda tensor, ranks: cp(tensor, ranks[0]),
    ),
    "tt": Kind("tt", train_energies, _bonds, train_parameters, tensor_train),
}
