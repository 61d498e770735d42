"""Canonical polyadic decomposition: a 1×1 convolution, depthwise ones along each axis, and a 1×1 convolution."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from microtome.core.decomposition.factor import Factor
from microtome.core.decomposition.tensors import leading, times, unfold

DAMPING = 1e-4  # of the normal equations, as a share of their mean diagonal
TRIAL = 8  # rounds after which the best start is known
SETTLED = 1e-6  # of the error: a round that changes it by less is the last
LARGE = 1 << 18  # values: a larger tensor is first decomposed within the subspaces that its rank can reach
POLISH = 3  # rounds on the whole tensor behind that


def cp(tensor: Tensor, rank: int, *, rounds: int = 100, starts: int = 2, seed: int = 0) -> tuple[Factor, ...]:
    """Return a sum of so many products of vectors that is close to a kernel: damped alternating least squares.

    Starts are the leading singular vectors of the unfoldings, and random ones; after a few rounds the best goes on.
    Without damping, components grow against one another and what is then trained diverges (Phan et al., "Stable
    Low-rank Tensor Decomposition for Compression of Convolutional Neural Network", ECCV 2020); here the normal
    equations are damped and norms are shared evenly between a component's vectors. Sources: Kolda and Bader, SIAM
    Review 2009, section 3.4; as a chain of convolutions: Lebedev et al., ICLR 2015. A large tensor is first projected
    onto its leading subspaces of outputs and inputs (CANDELINC, Kolda and Bader, section 5.3).

    Args:
        tensor: (outputs, inputs, *kernel), at least one axis of the kernel longer than 1.
        rank: number of components.
        rounds: at most.
        starts: beside that of the unfoldings, random ones.
        seed: of these.

    Returns:
        `first`, `axis1`, … (depthwise), `last`. The first axis also walks along those of size 1.
    """
    walked = tuple(axis for axis, size in enumerate(tensor.shape[2:]) if size > 1)
    whole = tensor.reshape(*tensor.shape[:2], *(tensor.shape[2 + axis] for axis in walked))
    small, sides = whole, [None, None]
    if whole.numel() > LARGE:
        for axis in (0, 1):
            if rank < whole.shape[axis]:
                side = leading(unfold(whole, axis), rank)
                small, sides[axis] = times(small, side.T, axis), side  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(seed)
    begun = [_start(small, rank, generator, drawn=bool(k)) for k in range(1 + starts)]
    tried = [_alternate(small, vectors, TRIAL) for vectors in begun]
    vectors = _alternate(small, min(tried, key=functools.partial(_error, small)), rounds)
    if small is not whole:
        expand = [*sides, *[None] * len(walked)]
        vectors = [v if side is None else side @ v for v, side in zip(vectors, expand, strict=True)]
        vectors = _alternate(whole, vectors, POLISH)
    return _chain(tensor, walked, vectors)


def cp_parameters(shape: tuple[int, ...], rank: int) -> int:
    """Return the number of weights of such a sum for a kernel of a shape."""
    outputs, inputs, *kernel = shape
    return rank * (outputs + inputs + sum(size for size in kernel if size > 1))


def _start(tensor: Tensor, rank: int, generator: torch.Generator, *, drawn: bool) -> list[Tensor]:
    """Return first vectors (size, rank) for each axis: leading ones as far as there are, the others at random."""
    vectors = []
    for axis, size in enumerate(tensor.shape):
        noise = torch.randn(size, rank, generator=generator, dtype=torch.float64).to(tensor) / size**0.5
        if not drawn:
            found = leading(unfold(tensor, axis), rank)
            noise[:, : found.shape[1]] = found
        vectors.append(noise)
    return vectors


def _alternate(tensor: Tensor, vectors: Sequence[Tensor], rounds: int) -> list[Tensor]:
    """Solve for the vectors of one axis after the other, until the error settles."""
    vectors = list(vectors)
    grams = [v.T @ v for v in vectors]
    before = _error(tensor, vectors)
    for _ in range(rounds):
        for axis in range(tensor.ndim):
            gram = functools.reduce(operator.mul, (g for other, g in enumerate(grams) if other != axis))
            damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
            vectors[axis] = torch.linalg.solve(damped, _projected(tensor, vectors, axis).T).T
            grams[axis] = vectors[axis].T @ vectors[axis]
        vectors = _even(vectors)
        grams = [v.T @ v for v in vectors]
        now = _error(tensor, vectors)
        if abs(before - now) <= SETTLED * before:
            break
        before = now
    return vectors


def _projected(tensor: Tensor, vectors: Sequence[Tensor], axis: int) -> Tensor:
    """Return the tensor times the vectors of all other axes, component by component: (size, rank)."""
    order = sorted((other for other in range(tensor.ndim) if other != axis), key=lambda other: -tensor.shape[other])
    first, *others = order
    result: Tensor = torch.tensordot(tensor, vectors[first], dims=([first], [0]))  # the rank comes last
    left = [other for other in range(tensor.ndim) if other != first]
    for other in others:
        place = left.index(other)
        result = (result.movedim(place, -2) * vectors[other]).sum(-2)
        left.remove(other)
    return result


def _even(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Give all vectors of a component the same norm, their product being what it was."""
    norms = torch.stack([v.norm(dim=0) for v in vectors]).clamp(min=1e-30)
    common = norms.log().mean(0).exp()
    return [v * (common / norm) for v, norm in zip(vectors, norms, strict=True)]


def _error(tensor: Tensor, vectors: Sequence[Tensor]) -> float:
    """Return the squared error of a sum of products."""
    gram = functools.reduce(operator.mul, (v.T @ v for v in vectors))
    overlap = (_projected(tensor, vectors, 0) * vectors[0]).sum()
    return max(float(tensor.square().sum() - 2 * overlap + gram.sum()), 0.0)


def _chain(tensor: Tensor, walked: tuple[int, ...], vectors: Sequence[Tensor]) -> tuple[Factor, ...]:
    dims = tensor.ndim - 2
    ones = (1,) * dims
    single = tuple(axis for axis in range(dims) if axis not in walked)
    outputs, inputs, *others = vectors
    links = []
    for place, (axis, along) in enumerate(zip(walked, others, strict=True)):
        weight = along.T.reshape(-1, 1, *ones[:axis], len(along), *ones[axis + 1 :])
        links.append(Factor(f"axis{axis + 1}", weight, (axis, *(single if place == 0 else ())), depthwise=True))
    first = Factor("first", inputs.T.reshape(-1, inputs.shape[0], *ones))
    return first, *links, Factor("last", outputs.reshape(outputs.shape[0], -1, *ones))
