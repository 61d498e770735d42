"""From a network's output to a label map on the image's own grid, or to probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from microtome.errors import DataError, GeometryError
from microtome.medical.cleanup import cleaned
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, antialiased, restore
from microtome.medical.regions import code_type, codes, masks_of_codes
from microtome.medical.resampling import nearest, resample
from microtome.types import Array

HUGE = 1e30  # stands for infinity in scores, which linear interpolation would turn into NaN
NAN = ("The network returned NaN.", "Check its weights and the normalization of the image.")
SLAB = 1 << 16  # voxels per step of an argmax: the running maximum stays in the cache


def probabilities(logits: Array, pipeline: Pipeline) -> Array:
    """Class probabilities of a classifier from its outputs (N, K).

    One output is the probability of the second of two classes. Sigmoid with one output per class leaves the classes
    independent of one another (their sum is not one). Computed in float64: in float32, confident cases would tie at 1
    and lose their order, which the AUROC rests on.

    Returns:
        float64 (N, classes).

    Raises:
        DataError: NaN in the output, or a shape that does not fit the classes.
    """
    values = np.asarray(logits, np.float64)
    classes = len(pipeline.classes)
    single = values.ndim == 2 and values.shape[1] == 1 and classes == 2
    if not single and values.shape[1:] != (classes,):
        raise DataError(
            f"The network's output has shape {values.shape}, which does not fit {classes} classes.",
            "A classifier returns one value per class, or a single one for two classes.",
        )
    if np.isnan(values).any():
        raise DataError(*NAN)
    if pipeline.activation == "sigmoid" or (single and pipeline.activation == "softmax"):
        values = np.exp(-np.logaddexp(0.0, -values))
    elif pipeline.activation == "softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return np.concatenate([1 - values, values], axis=1) if single else values


def finish_segmentation(scores: Array, prepared: Prepared, pipeline: Pipeline) -> Array:
    """Turn the network's output for a prepared image into labels on the image's own grid.

    Padding is cut off, scores are resampled to the crop, the best class (softmax, none: argmax; sigmoid: the best above
    the threshold, label 0 else) is taken, and the crop is put back where it was; outside it is background. Of regions
    that overlap, each channel is a mask of its own.

    Args:
        scores: float32 (K, *S) with S as in `prepared.array`. K is the number of classes, or one less (no background)
            with sigmoid. One channel for two classes is the foreground. With regions, K is their number.
        prepared: what `prepare` returned for the image.
        pipeline: the one that prepared it.

    Returns:
        uint8 label map of the image's spatial shape (uint16 with more than 256 classes); of regions, bool (K, *shape).

    Raises:
        DataError: NaN in the scores, or a number of channels that does not fit the classes.
        GeometryError: the output does not have the spatial size of the input.
    """
    scores = np.asarray(scores, np.float32)
    require_size(scores, prepared)
    threshold = foreground_threshold(scores.shape[0], pipeline)
    scores = scores[(slice(None), *prepared.inner)]
    low, high = float(scores.min()), float(scores.max())
    if math.isnan(low):
        raise DataError(*NAN)
    size, dtype = decided_size(prepared, pipeline), label_type(pipeline)
    if goes_back(prepared, pipeline):
        scores = np.clip(scores, -HUGE, HUGE) if math.isinf(low) or math.isinf(high) else scores
        how: dict[str, Any] = {"how": pipeline.score_interpolation, "apart": prepared.apart}
        how["steps"] = prepared.steps_back
        how["antialias"] = pipeline.spatial_dims == 2 and antialiased(pipeline, pipeline.score_interpolation)
        resampled = (resample(channel[None], size, **how)[0] for channel in scores)
        return restored(decided(resampled, threshold, pipeline), prepared, pipeline)
    labels = np.empty(size, dtype)
    rows = max(1, SLAB // math.prod(size[1:]))
    for first in range(0, size[0], rows):
        slab = slice(first, first + rows)
        labels[slab] = decided((channel[slab] for channel in scores), threshold, pipeline)
    return restored(labels, prepared, pipeline)


def decided(channels: Iterable[Array], threshold: float | None, pipeline: Pipeline) -> Array:
    """Labels of scores that come channel by channel; of regions that overlap, their codes (`regions.codes`)."""
    if pipeline.regions is None:
        return best_class(channels, threshold, label_type(pipeline))
    assert threshold is not None
    return codes(channels, threshold, label_type(pipeline))


def goes_back(prepared: Prepared, pipeline: Pipeline) -> bool:
    """Whether scores are resampled to the crop before labels are chosen."""
    return pipeline.decide == "image" and prepared.resampled


def decided_size(prepared: Prepared, pipeline: Pipeline) -> tuple[int, ...]:
    """The size of the grid on which labels are chosen: the crop of the image, or the network's."""
    return prepared.crop if pipeline.decide == "image" else prepared.content


def restored(labels: Array, prepared: Prepared, pipeline: Pipeline) -> Array:
    """What was decided, cleaned, on the image's own grid: a label map (*S), or bool masks (regions, *S)."""
    if prepared.resampled and not goes_back(prepared, pipeline):
        steps = prepared.steps_back or (None,) * labels.ndim
        for axis, (size, step) in enumerate(zip(prepared.crop, steps, strict=True)):
            labels = np.take(labels, nearest(labels.shape[axis], size, step), axis=axis)
    whole = restore(labels, prepared)
    found = whole if pipeline.regions is None else masks_of_codes(whole, len(pipeline.regions))
    return cleaned(found, pipeline.cleanup)


def label_type(pipeline: Pipeline) -> np.dtype:
    """The type of a label map: uint8, or uint16 with more than 256 classes; or that of the codes of regions."""
    if pipeline.regions is not None:
        return code_type(len(pipeline.regions))
    return np.dtype(np.uint8 if len(pipeline.classes) <= 256 else np.uint16)


def require_size(scores: Array, prepared: Prepared) -> None:
    """Refuse scores (K, *S) of another spatial size than the network's input.

    Raises:
        GeometryError: the network does not keep the size.
    """
    if scores.shape[1:] != prepared.array.shape[1:]:
        raise GeometryError(
            f"The network turned an input of shape {prepared.array.shape} into an output of shape {scores.shape}.",
            "Set 'divisible', 'size' or 'patch' so that the network keeps the spatial size.",
        )


def foreground_threshold(outputs: int, pipeline: Pipeline) -> float | None:
    """The score above which a channel is foreground; None where the first channel is the background.

    Args:
        outputs: channels of the network's output.
        pipeline: says how many classes there are, and the activation.

    Raises:
        DataError: a number of channels that does not fit the classes.
    """
    classes, logit = len(pipeline.classes), math.log(pipeline.threshold / (1 - pipeline.threshold))
    if pipeline.regions is not None:
        if outputs != len(pipeline.regions):
            raise DataError(
                f"The network has {outputs} output channels, and there are {len(pipeline.regions)} regions "
                f"({', '.join(pipeline.regions)}).",
                "Name one region for each channel, in their order.",
            )
        return logit if pipeline.activation == "sigmoid" else pipeline.threshold
    if pipeline.activation == "sigmoid" and outputs == classes - 1:
        return logit
    if pipeline.activation == "none" and outputs == classes - 1 == 1:
        return pipeline.threshold
    if pipeline.activation != "sigmoid" and outputs == classes:
        return None
    raise DataError(
        f"The network has {outputs} output channels, which does not fit {classes} classes and '{pipeline.activation}'.",
        "Use 'softmax' with one channel per class, or 'sigmoid' with one per class but the background.",
    )


def best_class(channels: Iterable[Array], threshold: float | None, dtype: np.dtype) -> Array:
    """Label of the highest channel, the first one of equals; label 0 is the first channel, or the threshold if given.

    Channels come one by one, so that only a running maximum is held, however many classes there are.
    """
    remaining = iter(channels)
    first = next(remaining)
    if threshold is None:
        best = first.copy()
    else:
        best = np.full(first.shape, threshold, np.float32)
        remaining = itertools.chain([first], remaining)
    labels = np.zeros(first.shape, dtype)
    for label, channel in enumerate(remaining, start=1):
        # Labels rise, so that a maximum writes the new label where it is due: faster than masked assignment.
        np.maximum(labels, np.multiply(channel > best, label, dtype=dtype), out=labels)
        np.maximum(best, channel, out=best)
    return labels
