"""Segmentation in the plain order, window after window over the whole image: what the streamed way is judged by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from microtome.evidence.comparison import streamed
from microtome.medical.infer import finish_segmentation
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, prepare
from microtome.medical.sliding import blending, pad, require_windows, starts, window_of
from microtome.tasks import task
from microtome.tasks.base import predict_one
from microtome.types import Array, Image

Predict = Callable[[Array], Array]


def segment(predict: Predict, image: Image, pipeline: Pipeline, *, batch: int = 1) -> Array:
    """The label map of an image, on its own grid.

    Args:
        predict: float32 (N, C, *S) → float32 (N, K, *S); N is 1, or `batch` with a sliding window.
        image: the image as read.
        pipeline: what the network wants.
        batch: windows per call.

    Returns:
        uint8 label map of the image's spatial shape (uint16 with more than 256 classes).

    Raises:
        DataError, GeometryError: as `prepare`, `sliding_window` and `finish_segmentation`.
    """
    prepared = prepare(image, pipeline)
    return finish_segmentation(scores(predict, prepared, pipeline, batch=batch), prepared, pipeline)


def scores(predict: Predict, prepared: Prepared, pipeline: Pipeline, *, batch: int = 1) -> Array:
    """The network's output for a prepared image, by sliding window where the pipeline has a patch.

    Returns:
        float32 (K, *S) for segmentation, (K,) for classification.

    Raises:
        GeometryError: the output for a window does not have the window's size.
    """
    if pipeline.patch is not None:
        return sliding_window(predict, prepared.array, patch=pipeline.patch, overlap=pipeline.overlap, batch=batch)
    output: Array = np.asarray(predict(prepared.array[None]), np.float32)[0]
    return output


def sliding_window(predict: Predict, array: Array, *, patch: Sequence[int], overlap: float, batch: int = 1) -> Array:
    """The network's scores for a whole image, patch by patch.

    Windows stand evenly spaced and cover every voxel; neighbours share at least `overlap` of the patch, to a voxel.
    Scores are blended with Gaussian weights (nnU-Net, Isensee et al. 2021) that add up to one in every voxel. An image
    smaller than the patch gets zeros on both sides, which are cut off again. Needs memory for one (K, *S) array.

    Args:
        predict: float32 (batch, C, *patch) → (batch, K, *patch). The last batch is filled up with copies of its last
            patch, so that the network sees one shape only.
        array: float32 (C, *S).
        patch: window size, one number per spatial axis.
        overlap: in [0, 1).
        batch: windows per call.

    Returns:
        float32 (K, *S).

    Raises:
        GeometryError: the output of the network does not have the size of the patch.
    """
    padded, inner = pad(array, patch)
    axes = [starts(size, p, overlap) for size, p in zip(padded.shape[1:], patch, strict=True)]
    weights = [blending(begins, p, 1 / 8) for begins, p in zip(axes, patch, strict=True)]
    windows = list(itertools.product(*(range(len(begins)) for begins in axes)))
    blended: Array | None = None
    for first in range(0, len(windows), batch):
        group = windows[first : first + batch]
        corners = [tuple(begins[i] for begins, i in zip(axes, window, strict=True)) for window in group]
        tiles = [window_of(padded, corner, patch) for corner in corners]
        scores = np.asarray(predict(np.stack(tiles + tiles[-1:] * (batch - len(tiles)))))
        require_windows(scores, batch, patch)
        if blended is None:
            blended = np.zeros((scores.shape[1], *padded.shape[1:]), np.float32)
        for window, corner, tile in zip(group, corners, scores, strict=False):
            target = window_of(blended, corner, patch)
            target += tile * _outer([axis[i] for axis, i in zip(weights, window, strict=True)])
    assert blended is not None  # there is always one window
    return blended[inner]


def _outer(vectors: Sequence[Array]) -> Array:
    product = vectors[0]
    for vector in vectors[1:]:
        product = product[..., None] * vector
    return product


def classify(predict: Predict, image: Image, pipeline: Pipeline) -> Array:
    """The class probabilities of an image."""
    return predict_one(task(pipeline.task), streamed(predict), prepare(image, pipeline), pipeline)
