"""Factors of a kernel: small convolutions that, one after the other, do what a large one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factor:
    """One of a chain of convolutions, linear layers being convolutions without spatial axes.

    Attributes:
        name: of the link that it becomes.
        weight: (outputs, inputs, *kernel), of as many axes as the tensor that was factorized; (channels, 1, *kernel)
            where it is depthwise, which the first of a chain is not.
        axes: spatial axes, from 0, along which it walks: stride, padding and dilation there are its own. Along all
            others its kernel has size 1.
        depthwise: each channel is convolved alone.
    """

    name: str
    weight: Tensor
    axes: tuple[int, ...] = ()
    depthwise: bool = False

    @property
    def inputs(self) -> int:
        """Number of channels that it reads."""
        return int(self.weight.shape[0 if self.depthwise else 1])

    @property
    def outputs(self) -> int:
        """Number of channels that it makes."""
        return int(self.weight.shape[0])


def composed(factors: Sequence[Factor]) -> Tensor:
    """Return the kernel (outputs, inputs, *kernel) that a chain of factors computes.

    Strides, paddings and dilations along an axis are those of the one factor that walks there, so that the chain's
    kernel is the product of its factors, axis by axis.
    """
    whole = factors[0].weight
    for factor in factors[1:]:
        if factor.depthwise:
            whole = factor.weight * whole
        else:  # sizes of one kernel are 1 wherever the other's are not: matrices, one for each place in the kernel
            whole = (_matrices(factor.weight) @ _matrices(whole)).movedim((-2, -1), (0, 1))
    return whole


def parameters(factors: Sequence[Factor]) -> int:
    """Return the number of weights of a chain."""
    return sum(factor.weight.numel() for factor in factors)


def _matrices(weight: Tensor) -> Tensor:
    return weight.movedim((0, 1), (-2, -1))
