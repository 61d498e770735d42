"""Boxes in images: windows through the network, their heads decoded, boxes brought together and back to the image."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np

from microtome.errors import DataError
from microtome.medical.decoding import decoded, on_image, suppressed
from microtome.medical.inputs import batch_of, by_name
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.sliding import pad, starts, window_of
from microtome.medical.stream import Stream
from microtome.types import Array, Batch


def boxes_each(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
) -> Generator[Array | DataError, None, None]:
    """The boxes of many prepared images, in order; windows of all go through one stream where they have one shape.

    Yields:
        (n, 2 + 2·d), float64: class, score, box in voxels of the image, by falling score; or what was wrong with the
        network's output for an image; the others go on.
    """
    if pipeline.input_shape is not None:
        yield from _through(stream, images, pipeline)
        return
    for prepared in images:
        yield from _through(stream, [prepared], pipeline)


def _through(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
) -> Generator[Array | DataError, None, None]:
    """Send the windows of images through one stream; without a patch, one window is the whole image."""
    waiting: deque[tuple[Prepared, list[tuple[int, ...]], Array]] = deque()

    def inputs() -> Iterator[Batch]:
        for prepared in images:
            patch = pipeline.patch or prepared.array.shape[1:]
            array, inner = pad(prepared.array, patch)
            even = pipeline.placement == "even"
            axes = [starts(n, p, pipeline.overlap, even=even) for n, p in zip(array.shape[1:], patch, strict=True)]
            corners = list(itertools.product(*axes))
            waiting.append((prepared, corners, np.array([part.start for part in inner[1:]], float)))
            for corner in corners:
                window = window_of(array, corner, patch)[None]
                yield by_name(batch_of(window, prepared.numbers, pipeline), pipeline)

    results = stream(inputs())
    try:
        for first in results:
            prepared, corners, before = waiting.popleft()
            problem: DataError | None = None
            found = []
            for corner in corners:
                outputs = first if corner is corners[0] else next(results)
                try:
                    found.append(_shifted(_boxes(outputs, prepared, pipeline), np.array(corner) - before))
                except DataError as error:
                    problem = problem or error
            assert pipeline.detector is not None
            yield problem or on_image(suppressed(np.concatenate(found), pipeline.detector), prepared)
    finally:
        if isinstance(results, Generator):
            results.close()


def _boxes(outputs: Any, prepared: Prepared, pipeline: Pipeline) -> Array:
    """The boxes in one window."""
    size = pipeline.patch or prepared.array.shape[1:]
    assert pipeline.detector is not None
    names = pipeline.detector.outputs or tuple(outputs)
    return decoded({name: np.asarray(outputs[name]) for name in names if name in outputs}, size, pipeline)


def _shifted(found: Array, by: Array) -> Array:
    found[:, 2:] += np.tile(by, 2)
    return found
