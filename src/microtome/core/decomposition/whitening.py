"""Errors measured in a layer's output: weights as they act on the inputs that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microtome.core.decomposition.factor import Factor
from microtome.core.decomposition.tensors import times

LEAST = 1e-4  # of the mean variance: inputs that hardly vary on a few images may do so on others


@dataclass(frozen=True, eq=False)
class Whitening:
    """Square roots of the inputs' covariance, one for each axis of a kernel but the outputs'.

    The covariance of what a kernel sees is taken for a Kronecker product: of channels, and of places along each spatial
    axis. The squared norm of `whitened(kernel)` is then the variance of the layer's output, so that a decomposition of
    it loses least there, and not in the weights (Zhang et al., TPAMI 2016, section 3.2, for the channels of 1×1
    layers).

    Attributes:
        roots: symmetric, positive definite: (inputs, inputs), then (size, size) for each spatial axis.
    """

    roots: tuple[Tensor, ...]

    @classmethod
    def of(cls, covariances: Sequence[Tensor]) -> Whitening:
        """Make it from covariances, of inputs and of each spatial axis."""
        return cls(tuple(_root(covariance) for covariance in covariances))

    def whitened(self, tensor: Tensor) -> Tensor:
        """Return a kernel (outputs, inputs, *kernel) whose norm is that of its output."""
        for axis, root in enumerate(self.roots, start=1):
            tensor = times(tensor, root.to(tensor), axis)
        return tensor

    def restored(self, factors: Sequence[Factor]) -> tuple[Factor, ...]:
        """Return the factors of a whitened kernel as factors of the kernel itself."""
        first, *others = factors
        chain = [replace(first, weight=_undone(first.weight, self.roots[0], 1)), *others]
        for axis, root in enumerate(self.roots[1:]):
            place = next(place for place, factor in enumerate(chain) if axis in factor.axes)
            chain[place] = replace(chain[place], weight=_undone(chain[place].weight, root, 2 + axis))
        return tuple(chain)


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a covariance, its smallest values raised."""
    values, vectors = torch.linalg.eigh(covariance.double())
    mean = float(values.clamp(min=0).mean())
    values = values.clamp(min=LEAST * mean) if mean > 0 else torch.ones_like(values)
    root: Tensor = (vectors * values.sqrt()) @ vectors.T
    return root


def _undone(weight: Tensor, root: Tensor, axis: int) -> Tensor:
    """Return a weight times the inverse of a root along an axis."""
    rows = weight.movedim(axis, 0)
    solved: Tensor = torch.linalg.solve(root.to(weight), rows.flatten(1))
    return solved.reshape(rows.shape).movedim(0, axis)
