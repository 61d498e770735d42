"""Labels of channels: which elements of the values in a graph are one unit, as a union-find over whole tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NONE = 0
"""The label of elements that belong to no unit."""


class Labels:
    """Numbers that stand for units, and which of them are the same.

    A label is *hard* if a layer or an input makes the unit, and soft if it only stands for an element of a constant,
    which belongs to whatever it is added to or multiplied by. The representative of a set is its oldest label.
    """

    def __init__(self) -> None:
        """Start with `NONE` alone."""
        self._parent = torch.zeros(1, dtype=torch.int64)
        self._hard = torch.zeros(1, dtype=torch.bool)
        self._locks: list[tuple[Tensor, str]] = []

    @property
    def count(self) -> int:
        """How many labels there are, `NONE` included."""
        return len(self._parent)

    def fresh(self, count: int, *, hard: bool) -> Tensor:
        """Return so many new labels, shape (count,)."""
        start = len(self._parent)
        new = torch.arange(start, start + count)
        self._parent = torch.cat([self._parent, new])
        self._hard = torch.cat([self._hard, torch.full((count,), hard)])
        return new

    def find(self, labels: Tensor) -> Tensor:
        """Return the representative of each label."""
        while True:
            above = self._parent[labels]
            if torch.equal(above, labels):
                return labels
            labels = above

    def unify(self, first: Tensor, second: Tensor) -> None:
        """Say that labels are the same, pair by pair; the shapes broadcast. Pairs with `NONE` say nothing."""
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        one, other = first.expand(shape).reshape(-1), second.expand(shape).reshape(-1)
        both = (one != NONE) & (other != NONE)
        one, other = one[both], other[both]
        while True:
            one, other = self.find(one), self.find(other)
            differ = one != other
            if not bool(differ.any()):
                return
            pairs = torch.unique(torch.stack([one[differ], other[differ]]), dim=1)
            low, high = pairs.amin(0), pairs.amax(0)
            hard = self._hard[high].to(torch.uint8)
            marks = torch.zeros_like(self._hard, dtype=torch.uint8).scatter_reduce_(0, low, hard, "amax")
            self._hard |= marks.bool()
            self._parent.scatter_reduce_(0, high, low, "amin")
            # the older label of a pair may have become a member of a third set in this very step
            self._hard[self.find(low[hard.bool()])] = True

    def lock(self, labels: Tensor, reason: str) -> None:
        """Say why units cannot be removed."""
        labels = torch.unique(labels)
        if bool((labels != NONE).any()):
            self._locks.append((labels[labels != NONE], reason))

    def is_hard(self, labels: Tensor) -> Tensor:
        """Whether a layer or an input makes the units."""
        return self._hard[self.find(labels)]

    def locks(self) -> Iterable[tuple[Tensor, str]]:
        """Yield representatives and why they cannot be removed, in the order in which it was said."""
        for labels, reason in self._locks:
            yield torch.unique(self.find(labels)), reason

    def compressed(self, labels: Tensor) -> Tensor:
        """Return the representatives, with size 1 along the axes on which they are all the same."""
        return compressed(self.find(labels))


def compressed(values: Tensor) -> Tensor:
    """Return a tensor with size 1 along the axes on which it is constant."""
    for axis in range(values.ndim):
        if values.shape[axis] > 1:
            one = values.narrow(axis, 0, 1)
            if bool((values == one).all()):
                values = one
    return values


def full_along(labels: Tensor, axis: int, size: int) -> Tensor:
    """Return labels with their full size along an axis."""
    shape = list(labels.shape)
    shape[axis] = size
    return labels.expand(shape)


def reshaped(labels: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Return the labels of a view, with size 1 along axes on which they are constant.

    The axes are matched in the smallest stretches of equal product, so that only stretches with labels are written out.

    Args:
        labels: of the value; along each axis its size or 1.
        before: the value's sizes.
        after: the view's sizes, of the same product.
    """
    wide: list[int] = []
    shape: list[int] = []
    for old, new in _stretches(before, after):
        varied = any(labels.shape[axis] > 1 for axis in old)
        wide += [before[axis] if varied else 1 for axis in old]
        shape += [after[axis] if varied else 1 for axis in new]
    return compressed(labels.expand(wide).reshape(shape))


def _stretches(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair consecutive axes whose sizes have the same product; axes of size 1 join the stretch before them."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        one = other = 1
        while True:
            if one == other and (old or new) and one > 1:
                break
            if i < len(before) and (one <= other or j >= len(after)):
                one *= before[i]
                old.append(i)
                i += 1
            elif j < len(after):
                other *= after[j]
                new.append(j)
                j += 1
            else:
                break
        while i < len(before) and before[i] == 1:
            old.append(i)
            i += 1
        while j < len(after) and after[j] == 1:
            new.append(j)
            j += 1
        found.append((old, new))
    return found
