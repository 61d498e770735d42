"""What a network takes beside the image, from the image's own grid to the network: stacked, then split by name.

Whatever has the image's axes of space is stacked behind its channels as soon as it is prepared, so that windows,
mirroring and augmentation treat all of it alike. It is split where the network is given its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import DataError, OptionError
from microtome.medical.declared_inputs import Input
from microtome.medical.foreground import prepare_labels
from microtome.types import Array, Batch, Image

if TYPE_CHECKING:
    from microtome.medical.pipeline import Pipeline
    from microtome.medical.prepare import Prepared

IMAGE = "input"  # what a network's only input is called where the model gives it no name


def with_inputs(
    prepared: Prepared, image: Image, pipeline: Pipeline, prepare: Callable[[Image, Pipeline], Prepared]
) -> Prepared:
    """Return a prepared image with what the network takes beside it: stacked channels, and numbers.

    Args:
        prepared: the image alone.
        image: it and its further inputs.
        pipeline: declares these.
        prepare: prepares an image alone.

    Raises:
        DataError: one is missing, or has another number of channels.
    """
    stack, numbers = [prepared.array], {}
    for name, declared in _stacked_order(pipeline):
        if name not in image.inputs:
            raise DataError(
                f"The image comes without '{name}', which the network takes too.",
                f"Say where it is: --input {name}=PATH, or what 'inputs' in pipeline.json names.",
            )
        given = image.inputs[name]
        if declared.columns:
            numbers[name] = np.asarray(given, np.float32)
        elif declared.labels is not None:
            labels = prepare_labels(given, prepared, smooth=declared.interpolation == "linear")
            stack.append(np.stack([labels == label for label in declared.one_hot_labels]).astype(np.float32))
        else:
            channels = declared.channels_beside(pipeline.channels)
            alone = replace(pipeline, inputs=None, crop=None, crop_margin=0, channels=channels)
            stack.append(prepare(_boxed(given, image, prepared), alone).array)
    return replace(prepared, array=np.concatenate(stack) if len(stack) > 1 else stack[0], numbers=numbers)


def batch_of(x: Array, numbers: Mapping[str, Array], pipeline: Pipeline) -> Batch:
    """Return what a network takes: the image alone, or all inputs by name, the image first.

    Args:
        x: float32 (N, C, *S) with all stacked channels; what is returned are views of it.
        numbers: by name: (K,), the same for all of `x`, or (N, K).
        pipeline: says which channels are whose.
    """
    inputs = pipeline.inputs or {}
    if all(declared.into is not None for declared in inputs.values()):
        return x
    first, apart = pipeline.network_channels, {}
    for name, declared in _stacked_order(pipeline):
        if declared.spatial and declared.into is None:
            last = first + declared.channels_beside(pipeline.channels)
            apart[name], first = x[:, first:last], last
        elif declared.columns:
            apart[name] = np.array(np.broadcast_to(numbers[name], (len(x), len(declared.columns))))
    image = x[:, : pipeline.network_channels]
    return {image_name(pipeline): image} | {name: apart[name] for name in inputs if name in apart}


def batch_of_one(prepared: Prepared, pipeline: Pipeline) -> Batch:
    """Return what the network takes for one prepared image as a whole, batch 1."""
    return batch_of(prepared.array[None], prepared.numbers, pipeline)


def by_name(x: Batch, pipeline: Pipeline) -> Mapping[str, Array]:
    """Return what the network takes by name, so that a stream returns all its outputs by name."""
    return x if isinstance(x, Mapping) else {image_name(pipeline): x}


def scores_of(result: Batch, pipeline: Pipeline) -> Array:
    """Return the scores from what a stream returned: the output that the pipeline names, or the first.

    Raises:
        OptionError: there is no such output.
    """
    if not isinstance(result, Mapping):
        return np.asarray(result)
    name = pipeline.output or next(iter(result))
    if name not in result:
        raise OptionError(f"The network has no output '{name}'.", f"It has {', '.join(result)}: set 'output'.")
    return np.asarray(result[name])


def image_name(pipeline: Pipeline) -> str:
    """Return the name of the input that takes the image."""
    return pipeline.input or IMAGE


def label_channels(pipeline: Pipeline) -> tuple[int, ...]:
    """Return which of the stacked channels are zeros and ones made of labels: no intensities."""
    found, first = list[int](), pipeline.channels
    for _, declared in _stacked_order(pipeline):
        if declared.spatial:
            last = first + declared.channels_beside(pipeline.channels)
            found += range(first, last) if declared.labels is not None else ()
            first = last
    return tuple(found)


def _stacked_order(pipeline: Pipeline) -> Iterator[tuple[str, Input]]:
    """Yield the declared inputs, those that go into the image first: the order of the stacked channels."""
    declared = (pipeline.inputs or {}).items()
    yield from sorted(declared, key=lambda pair: pair[1].into is None)


def _boxed(array: Array, image: Image, prepared: Prepared) -> Image:
    """Return a further image (C, *S) on an image's grid, cut to the part of it that was kept."""
    box = [slice(None)] * len(image.spatial)
    for part, axis, size in zip(prepared.box, prepared.order, prepared.oriented, strict=True):
        box[axis] = slice(size - part.stop, size - part.start) if prepared.flips[axis] else part
    return replace(image, array=array[(slice(None), *box)], inputs={})


def each(x: Batch, change: Callable[[Array], Array]) -> Batch:
    """Return a batch with each of its arrays changed."""
    return {name: change(array) for name, array in x.items()} if isinstance(x, Mapping) else change(x)


def arrays_of(x: Batch) -> tuple[Array, ...]:
    """Return the arrays of a batch, in order."""
    return tuple(x.values()) if isinstance(x, Mapping) else (x,)


def image_of(x: Batch) -> Array:
    """Return the image of a batch: the first of its inputs."""
    return arrays_of(x)[0]
