"""Where windows stand on a prepared image, and how their scores are blended plane by plane."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from microtome.medical.infer import goes_back
from microtome.medical.pipeline import Pipeline
from microtome.medical.planes import Blocks, kept_planes, shift_planes
from microtome.medical.prepare import Prepared
from microtome.medical.sliding import blending, block_of, input_of, pad, starts, window_of
from microtome.types import Array

CHUNK = 1 << 16  # voxels per step of blending: weights, products and sums stay in the cache


@dataclass(frozen=True)
class Window:
    """Where one window stands, which window it is along each axis, and which of its axes are mirrored.

    Attributes:
        constant: whether each channel holds one value only.
        again: whether it is the same input as the last constant window before it, so that it has the same scores.
    """

    corner: tuple[int, ...]
    index: tuple[int, ...]
    flipped: tuple[int, ...]
    constant: bool
    again: bool

    def flip(self, tile: Array) -> Array:
        """Mirror (C, *patch), there and back; a view."""
        return np.flip(tile, tuple(1 + axis for axis in self.flipped)) if self.flipped else tile


@dataclass(frozen=True)
class WindowPlan:
    """What runs, and what is kept of it.

    Attributes:
        array: float32 (C, *S), with zeros around it where it is smaller than the patch.
        patch: size of a window.
        windows: in the order of their first axis.
        weights: per axis (windows, patch); the weights of all flips of all windows add up to one in every voxel.
        kept: the part of S that scores are wanted for.
    """

    array: Array
    patch: tuple[int, ...]
    windows: tuple[Window, ...]
    weights: tuple[Array, ...]
    kept: tuple[slice, ...]


def streamable(prepared: Prepared, pipeline: Pipeline) -> bool:
    """Whether planes can be finished one by one.

    They cannot where pictures come back from another size: antialiasing mixes many rows, and a picture's scores are
    small; nor by splines, which rest on all rows. Then `finish_segmentation` gets the scores of the whole image.
    """
    same = not goes_back(prepared, pipeline)
    return same or (pipeline.spatial_dims == 3 and pipeline.score_interpolation != "cubic")


def plan_windows(prepared: Prepared, pipeline: Pipeline) -> WindowPlan:
    """Set windows on a prepared image, evenly spaced; without a patch, one window is the whole of it.

    Every window is there once for each of the 2^n ways to mirror the pipeline's axes. With `skip_empty`, those that
    hold one value only are left out.
    """
    mirror = pipeline.mirror
    sizes = prepared.array.shape[1:]
    patch = block_of(pipeline, sizes) or sizes
    array, inner = pad(prepared.array, patch)
    even = pipeline.placement == "even"
    begins = [starts(n, p, pipeline.overlap, even=even) for n, p in zip(array.shape[1:], patch, strict=True)]
    flips = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations(mirror, n)]
    windows: list[Window] = []
    last: bytes | None = None
    for index in itertools.product(*(range(len(axis)) for axis in begins)):
        corner = tuple(axis[i] for axis, i in zip(begins, index, strict=True))
        value = _constant(input_of(array, corner, patch, pipeline.slices))
        if value is None:
            windows += [Window(corner, index, axes, constant=False, again=False) for axes in flips]
        elif not pipeline.skip_empty:
            for axes in flips:
                windows.append(Window(corner, index, axes, constant=True, again=value == last))
                last = value
    sigma = None if pipeline.blending == "constant" else pipeline.sigma
    on_voxel = pipeline.blending == "gaussian_voxel"
    weights = [blending(axis, p, sigma, on_voxel=on_voxel) for axis, p in zip(begins, patch, strict=True)]
    weights[0] /= np.float32(len(flips))  # a power of two: exact
    wanted = prepared.inner if streamable(prepared, pipeline) else tuple(slice(0, n) for n in sizes)
    kept = tuple(
        slice(part.start + want.start, part.start + want.stop) for part, want in zip(inner[1:], wanted, strict=True)
    )
    return WindowPlan(array, tuple(patch), tuple(windows), tuple(weights), kept)


def _constant(tile: Array) -> bytes | None:
    """The one value of each channel of float32 (C, *patch), bit by bit; None where one has several."""
    bits: Array = tile.view(np.int32)
    corner = window_of(bits, [0] * (bits.ndim - 1), [1] * (bits.ndim - 1))
    # Plane by plane: most windows with content are known by their first.
    same = all((plane == value).all() for channel, value in zip(bits, corner, strict=True) for plane in channel)
    return corner.tobytes() if same else None


def blend(
    outputs: Iterator[tuple[Window, Array]], plan: WindowPlan, *, difference: bool = False, base: float = 0.0
) -> Blocks:
    """Blend windows, and hand out what is kept of the planes that no later window touches.

    Args:
        outputs: every window of the plan, in its order, with its scores (K, *patch), which are not looked at again.
        plan: where they stand.
        difference: of two channels, blend the second minus the first.
        base: what a window that is missing in the plan counts as.
    """
    if len(plan.windows) == 1 and plan.patch == plan.array.shape[1:]:
        _, tile = next(outputs)
        yield from kept_planes(tile, 0, plan.kept, difference)
        return
    slab: Array | None = None  # planes from `first` on, as many as a window is deep
    first, depth = 0, plan.patch[0]
    scratch = np.empty((2, max(1, CHUNK // math.prod(plan.patch[1:])), *plan.patch[1:]), np.float32)
    for window, tile in outputs:
        if slab is None:
            channels = 1 if difference else tile.shape[0]
            slab = np.full((channels, depth, *plan.array.shape[2:]), base, np.float32)
        while first < window.corner[0]:
            final = min(depth, window.corner[0] - first)
            yield from kept_planes(slab[:, :final], first, plan.kept)
            shift_planes(slab, final, base)
            first += final
        target = window_of(slab, (0, *window.corner[1:]), plan.patch)
        weights = [axis[i] for axis, i in zip(plan.weights, window.index, strict=True)]
        with np.errstate(invalid="ignore"):  # of infinite scores; NaN is looked for when all is blended
            _add(target, tile, weights, scratch, difference, base)
    assert slab is not None  # there is one window at least
    yield from kept_planes(slab, first, plan.kept)
    first += depth
    slab[...] = base
    while first < plan.array.shape[1]:  # the last windows were skipped
        yield from kept_planes(slab[:, : plan.array.shape[1] - first], first, plan.kept)
        first += depth


def _add(target: Array, tile: Array, weights: Sequence[Array], scratch: Array, difference: bool, base: float) -> None:
    """`target` += `tile` × weights, some planes at a time; rounds as `sliding_window` does."""
    step = scratch.shape[1]
    for first in range(0, tile.shape[1], step):
        part = slice(first, first + step)
        products = weights[0][part]
        for vector in weights[1:-1]:
            products = products[..., None] * vector
        weight, product = scratch[:, : len(products)]
        np.multiply(products[..., None], weights[-1], out=weight)
        if difference:
            np.subtract(tile[1, part], tile[0, part], out=product)
            np.multiply(product, weight, out=product)
            np.add(target[0, part], product, out=target[0, part])
            continue
        for sums, scores in zip(target, tile, strict=True):
            values = np.subtract(scores[part], np.float32(base), out=product) if base else scores[part]
            np.multiply(values, weight, out=product)
            np.add(sums[part], product, out=sums[part])
