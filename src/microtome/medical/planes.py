"""Blocks of whole planes, one after another along the first axis: cut, and interpolated to another grid."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from microtome.medical.infer import HUGE, SLAB
from microtome.medical.resampling import interpolation, resample
from microtome.types import Array

Blocks = Iterator[tuple[int, Array]]
"""In order and without gaps: the number of the first plane, and scores (K, planes, *rest)."""


def kept_planes(planes: Array, first: int, kept: Sequence[slice], difference: bool = False) -> Blocks:
    """What is kept of planes (K, n, *rest) from number `first` on, in blocks that stay in the cache.

    With `difference`, the second of two channels minus the first.
    """
    begin, end = max(first, kept[0].start), min(first + planes.shape[1], kept[0].stop)
    step = max(1, SLAB // math.prod(part.stop - part.start for part in kept[1:]))
    for plane in range(begin, end, step):
        block = planes[(slice(None), slice(plane - first, min(plane + step, end) - first), *kept[1:])]
        if difference:
            with np.errstate(invalid="ignore"):  # infinite scores have no difference: the caller looks for NaN
                block = np.subtract(block[1:], block[:1])
        yield plane - kept[0].start, block


def shift_planes(slab: Array, planes: int, base: float) -> None:
    """Drop the first planes; those that come in are empty."""
    left = slab.shape[1] - planes
    for channel in slab:
        for first in range(0, left, planes):  # in steps that do not overlap themselves, or numpy would copy
            count = min(planes, left - first)
            channel[first : first + count] = channel[first + planes : first + planes + count]
        channel[left:] = base


def resampled_planes(
    blocks: Blocks,
    content: Sequence[int],
    size: Sequence[int],
    *,
    how: str = "linear",
    apart: int | None = None,
    steps: Sequence[float] | None = None,
) -> Blocks:
    """Interpolate planes from `content` to `size`, as `resample` does, holding the open ones only.

    What is cheaper comes first: planes are made before rows and columns where they get fewer.
    """
    along = "nearest" if apart == 0 else how
    matrix = interpolation(content[0], size[0], False, along, None if steps is None else steps[0])
    rest = functools.partial(
        resample,
        antialias=False,
        how=how,
        apart=None if apart in (None, 0) else apart,
        steps=None if steps is None else (1.0, *steps[1:]),
    )
    lows = np.argmax(matrix != 0, axis=1)  # the first and the last plane that each new one rests on
    highs = content[0] - 1 - np.argmax(matrix[:, ::-1] != 0, axis=1)
    step = max(1, SLAB // math.prod(size[1:]))
    shrinks = size[0] < content[0]
    held = np.empty((0, 0, 0, 0), np.float32)  # open planes, from number `first` on
    first, made = 0, 0
    for plane, block in blocks:
        finite = math.isfinite(block.min()) and math.isfinite(block.max())
        new = block if finite else np.clip(block, -HUGE, HUGE)
        new = new if shrinks else rest(new, (new.shape[1], *size[1:]))
        held = np.concatenate([held, new], axis=1) if held.size else np.array(new)
        ready = int(np.searchsorted(highs, plane + new.shape[1]))
        while made < ready:
            rows = slice(made, min(ready, made + step))
            used = slice(int(lows[made]), int(highs[rows.stop - 1]) + 1)
            band = held[:, used.start - first : used.stop - first]
            planes = np.matmul(matrix[rows, used], band.reshape(*band.shape[:2], -1))
            planes = planes.reshape(*planes.shape[:2], *held.shape[2:])
            yield made, rest(planes, (planes.shape[1], *size[1:])) if shrinks else planes
            made = rows.stop
        if made < size[0]:
            drop = min(int(lows[made]) - first, held.shape[1])
            held, first = held[:, drop:], first + drop
