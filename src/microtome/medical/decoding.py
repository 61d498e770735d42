"""From the raw heads of a detector to boxes on the image's own grid: decoding, suppression, the way back. In numpy.

Boxes are (lower corner, upper corner) in voxels, axes as in the array, a voxel k reaching from k to k + 1. Found ones
are rows (n, 2 + 2·d), float64: class, score, box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from microtome.clinical.boxes import kept, volumes
from microtome.errors import DataError
from microtome.medical.detector import Detector
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.types import Array

LARGEST = math.log(1000 / 16)  # of the logarithm of a size over its anchor's, as in Detectron, torchvision and MONAI
NAN = ("The network returned NaN or infinity.", "Check its weights and the normalization of the image.")


def decoded(outputs: Mapping[str, Array], size: Sequence[int], pipeline: Pipeline) -> Array:
    """Boxes in one input of the network, from its outputs for it; not yet suppressed.

    Args:
        outputs: by name, each of batch 1.
        size: of the input, (*S).
        pipeline: its `detector` says how.

    Returns:
        (n, 2 + 2·d), boxes in voxels of the input; of each level those of the highest scores.

    Raises:
        DataError: an output is missing, is not finite, or does not fit the anchors.
    """
    detector = pipeline.detector
    assert detector is not None
    rows = []
    for level, (scores, numbers) in enumerate(_levels(outputs, size, pipeline)):
        best = np.flatnonzero(scores.max(axis=1, initial=0.0) > detector.least)
        chances = scores[best]
        places, classes = np.nonzero(chances > detector.least)
        order = np.argsort(-chances[places, classes], kind="stable")[: detector.candidates]
        places, classes = places[order], classes[order]
        boxes = _corners(numbers, best[places], level, size, detector)
        rows.append(np.concatenate([classes[:, None], chances[places, classes][:, None], boxes], axis=1))
    return np.concatenate(rows) if rows else np.zeros((0, 2 + 2 * len(size)))


def suppressed(found: Array, detector: Detector) -> Array:
    """The boxes that are left of each class when those are gone that overlap a better one; by falling score."""
    if detector.overlap is not None:
        chosen = []
        for k in np.unique(found[:, 0]):
            own = np.flatnonzero(found[:, 0] == k)
            chosen.append(own[kept(found[own, 2:], found[own, 1], detector.overlap)])
        found = found[np.concatenate(chosen)] if chosen else found
    best: Array = found[np.argsort(-found[:, 1], kind="stable")][: detector.limit]
    return best


def on_image(found: Array, prepared: Prepared) -> Array:
    """Boxes in voxels of a prepared image, in those of the image itself; what lies outside of it is cut off."""
    d = len(prepared.oriented)
    low, high = found[:, 2 : 2 + d], found[:, 2 + d :]
    begin = np.array(prepared.start, float)
    scale, half = np.array(prepared.crop, float) / np.array(prepared.content, float), 0.0
    if prepared.steps is not None:  # the centres of the first voxels are one place, not the borders
        scale, half = np.array(prepared.steps), 0.5
    corner = np.array([part.start for part in prepared.box], float)
    size = np.array(prepared.oriented, float)
    low, high = (np.clip((side - begin - half) * scale + half + corner, 0, size) for side in (low, high))
    back = np.empty((len(found), 2 * d))
    for axis, own in enumerate(prepared.order):
        flipped = prepared.flips[own]
        back[:, own] = size[axis] - high[:, axis] if flipped else low[:, axis]
        back[:, d + own] = size[axis] - low[:, axis] if flipped else high[:, axis]
    whole = np.concatenate([found[:, :2], back], axis=1)
    return whole[volumes(back) > 0]


def _levels(outputs: Mapping[str, Array], size: Sequence[int], pipeline: Pipeline) -> Iterator[tuple[Array, Array]]:
    """Probabilities (M, K) and numbers of boxes (M, 2·d), of each level of the grid."""
    detector, classes, d = pipeline.detector, len(pipeline.classes), len(size)
    assert detector is not None
    nothing = pipeline.activation == "softmax"  # the last class of a softmax is that there is nothing
    if detector.scores:
        scores, boxes = (
            np.concatenate([_flat(_named(outputs, name), count, d) for name in names])
            for names, count in ((detector.scores, classes + nothing), (detector.boxes, 2 * d))
        )
    else:
        if len(outputs) != 1:
            raise DataError(f"The network has {len(outputs)} outputs.", "Name them under 'detector' in pipeline.json.")
        whole = _flat(next(iter(outputs.values())), classes + nothing + 2 * d, d)
        scores, boxes = whole[:, : classes + nothing], whole[:, classes + nothing :]
    centres = [_flat(_named(outputs, name), 1, d) for name in detector.centreness]
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all() and all(np.isfinite(one).all() for one in centres)):
        raise DataError(*NAN)
    chances = _chances(scores, pipeline.activation)[:, :classes]
    if centres:
        chances = np.sqrt(chances * _chances(np.concatenate(centres), "sigmoid"))
    counts = [math.prod(level) * anchors for level, anchors in _grids(detector, size)] or [len(chances)]
    if sum(counts) != len(chances) or len(boxes) != len(chances):
        raise DataError(
            f"The network gives {len(chances)} scores and {len(boxes)} boxes for an input of {_times(size)}, and the "
            f"declared grid has {sum(counts)} places.",
            "Correct 'strides' and 'anchors' of 'detector' in pipeline.json.",
        )
    ends = np.cumsum(counts)
    yield from zip(np.split(chances, ends[:-1]), np.split(boxes, ends[:-1]), strict=True)


def _named(outputs: Mapping[str, Array], name: str) -> Array:
    if name not in outputs:
        raise DataError(f"The network has no output '{name}'.", f"It has {', '.join(outputs)}: correct 'detector'.")
    return outputs[name]


def _flat(array: Array, count: int, d: int) -> Array:
    """A head of batch 1 as rows (M, count), float64: (1, M, count), or a map (1, A·count, *S) place by place."""
    array = np.asarray(array, np.float64)
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] == count:
        rows: Array = array[0]
        return rows
    if array.ndim == 2 + d and array.shape[0] == 1 and array.shape[1] % count == 0:
        split = array[0].reshape(-1, count, *array.shape[2:])
        placed: Array = np.moveaxis(split, (0, 1), (-2, -1)).reshape(-1, count)
        return placed
    raise DataError(
        f"A head of the network has the shape {array.shape}, which does not fit {count} numbers for each box.",
        f"It must be (N, M, {count}), or maps (N, anchors × {count}, *spatial): correct 'classes' or 'detector'.",
    )


def _chances(scores: Array, activation: str) -> Array:
    if activation == "sigmoid":
        single: Array = np.exp(-np.logaddexp(0.0, -scores))
        return single
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares
    return scores


def _grids(detector: Detector, size: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
    """The size of each level's grid, and how many boxes each place has."""
    each = [len(level) for level in detector.anchors] or [1] * len(detector.strides)
    grids = [tuple(math.ceil(n / stride) for n in size) for stride in detector.strides]
    return list(zip(grids, each, strict=True))


def _corners(numbers: Array, places: Array, level: int, size: Sequence[int], detector: Detector) -> Array:
    """Boxes (n, 2·d) of some places of a level, axes as in the array."""
    d = len(size)
    turned = detector.axes == "xy" or (detector.axes is None and d == 2)
    order = list(range(d))[::-1] if turned else list(range(d))
    chosen = numbers[places]
    first, second = chosen[:, :d][:, order], chosen[:, d:][:, order]
    if detector.head == "corners":
        return np.concatenate([first, second], axis=1)
    if detector.head == "queries":
        first, second = first * size, second * size
        return np.concatenate([first - second / 2, first + second / 2], axis=1)
    stride = detector.strides[level]
    grid, count = _grids(detector, size)[level]
    centres = (np.stack(np.unravel_index(places // count, grid), axis=1) + detector.shift) * stride
    if detector.head == "points":
        unit = stride if detector.by_stride else 1.0
        return np.concatenate([centres - first * unit, centres + second * unit], axis=1)
    anchors = np.array(detector.anchors[level], float)[:, order][places % count]
    if detector.weights is not None:
        weights = np.array(detector.weights, float)
        first, second = first / weights[:d][order], second / weights[d:][order]
    middle, extent = first * anchors + centres, np.exp(np.minimum(second, LARGEST)) * anchors
    return np.concatenate([middle - extent / 2, middle + extent / 2], axis=1)


def _times(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
