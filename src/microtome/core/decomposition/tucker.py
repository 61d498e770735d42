"""Tucker-2: a 1×1 convolution, a small core, and a 1×1 convolution."""

from __future__ import annotations

from torch import Tensor

from microtome.core.decomposition.factor import Factor
from microtome.core.decomposition.tensors import energies, leading, times, unfold

SETTLED = 1e-5  # of the energy kept: rounds that gain less are the last


def tucker(tensor: Tensor, ranks: tuple[int, int], *, rounds: int = 10) -> tuple[Factor, ...]:
    """Return a Tucker-2 decomposition of a kernel, of the least squared error that alternating finds.

    Subspaces of outputs and inputs start from the kernel's own unfoldings (HOSVD), and each is then made best for the
    other in turn (HOOI). Sources: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
    Mobile Applications", ICLR 2016, section 3; De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21, 2000.

    Args:
        tensor: (outputs, inputs, *kernel).
        ranks: channels behind and before the core. A side of full rank needs no 1×1 convolution: the core takes it up.
        rounds: of HOOI, at most.

    Returns:
        `first`, `core` and `last`, without those that are not needed.
    """
    most = tensor.shape[:2]
    full = [rank >= size for rank, size in zip(ranks, most, strict=True)]
    sides = [leading(unfold(tensor, axis), ranks[axis]) for axis in (0, 1)]
    kept = -1.0
    for _ in range(0 if all(full) else rounds):
        for axis in (0, 1):
            other = tensor if full[1 - axis] else times(tensor, sides[1 - axis].T, 1 - axis)
            if not full[axis]:
                sides[axis] = leading(unfold(other, axis), ranks[axis])
        now = float(_core(tensor, sides, full).square().sum())
        if now <= kept * (1 + SETTLED):
            break
        kept = now
    core = Factor("core", _core(tensor, sides, full), tuple(range(tensor.ndim - 2)))
    ones = (1,) * (tensor.ndim - 2)
    first = [] if full[1] else [Factor("first", sides[1].T.reshape(ranks[1], most[1], *ones))]
    last = [] if full[0] else [Factor("last", sides[0].reshape(most[0], ranks[0], *ones))]
    return (*first, core, *last)


def tucker_energies(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values of a kernel's unfoldings along outputs and inputs, the largest first."""
    return energies(unfold(tensor, 0)), energies(unfold(tensor, 1))


def tucker_parameters(shape: tuple[int, ...], ranks: tuple[int, int]) -> int:
    """Return the number of weights of a Tucker-2 decomposition of a kernel of a shape."""
    outputs, inputs, *kernel = shape
    behind, before = (min(rank, size) for rank, size in zip(ranks, (outputs, inputs), strict=True))
    count = behind * before
    for size in kernel:
        count *= size
    return count + (before * inputs if before < inputs else 0) + (behind * outputs if behind < outputs else 0)


def _core(tensor: Tensor, sides: list[Tensor], full: list[bool]) -> Tensor:
    for axis in (0, 1):
        if not full[axis]:
            tensor = times(tensor, sides[axis].T, axis)
    return tensor
