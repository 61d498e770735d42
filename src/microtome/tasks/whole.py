"""What tasks that give numbers for whole images have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable

from microtome.errors import DataError
from microtome.medical.inputs import batch_of_one, scores_of
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Stream
from microtome.types import Array


def whole_images(pipeline: Pipeline) -> str:
    """Return what is wrong with a pipeline for numbers of whole images; empty where nothing is."""
    if pipeline.patch is not None:
        return "'patch' is for maps only, and this task gives numbers for the whole image"
    if pipeline.mirror or pipeline.skip_empty:
        return "'mirror' and 'skip_empty' are for maps only, and this task gives numbers for the whole image"
    return ""


def outputs_each(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline, finish: Callable[[Array], Array]
) -> Generator[Array | DataError, None, None]:
    """Run whole images, and yield what `finish` makes of each output (1, K), or what was wrong with it."""
    inputs = (batch_of_one(prepared, pipeline) for prepared in images)
    streams = (stream(inputs),) if pipeline.input_shape is not None else (stream([x]) for x in inputs)
    for result in itertools.chain.from_iterable(streams):
        try:
            outcome: Array | DataError = finish(scores_of(result, pipeline)[:1])
        except DataError as error:
            outcome = error
        yield outcome
