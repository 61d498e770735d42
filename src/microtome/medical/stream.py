"""Segment prepared images plane by plane: labels are made as soon as no window is left that would change them."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from microtome.errors import DataError, OptionError
from microtome.medical.infer import (
    NAN,
    decided,
    decided_size,
    finish_segmentation,
    foreground_threshold,
    goes_back,
    label_type,
    require_size,
    restored,
)
from microtome.medical.inputs import batch_of, scores_of
from microtome.medical.pipeline import Pipeline
from microtome.medical.planes import Blocks, resampled_planes
from microtome.medical.prepare import Prepared
from microtome.medical.sliding import input_of, require_windows
from microtome.medical.windows import Window, blend, plan_windows, streamable
from microtome.types import Array, Batch

Stream = Callable[[Iterable[Batch]], Iterator[Any]]
"""Inputs of one shape → their outputs, in order; each valid until the next. Of an array, float32 (N, C, *S), the first
output, float32 (N, K, *S) or (N, K); of inputs by name (`inputs.by_name`) all outputs by name. The next inputs may be
taken before a result is handed out."""

BELOW = 1e-3  # how far below the threshold, relative to 1 + threshold, a skipped window counts


class _Undecided(Exception):
    """No error: the difference of two infinite scores says nothing."""


class TimedStream:
    """A stream, with the time that is spent waiting for its results.

    Attributes:
        seconds: so far; who reads it may set it back.
    """

    def __init__(self, stream: Stream) -> None:
        """Start at zero."""
        self._stream = stream
        self.seconds = 0.0

    def __call__(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs of one shape, as the stream itself does."""
        results = self._stream(batches)
        while True:
            begin = time.perf_counter()
            result = next(results, None)
            self.seconds += time.perf_counter() - begin
            if result is None:
                return
            yield result


def segment_streamed(stream: Stream, prepared: Prepared, pipeline: Pipeline, *, batch: int = 1) -> Array:
    """The label map of a prepared image, on the image's own grid.

    Windows stand as the pipeline says, and scores are blended with Gaussian weights (nnU-Net, Isensee et al., Nature
    Methods 2021) that add up to one in every voxel. Needs memory for the scores of one row of windows, (K, *rest) times
    the patch's first size. Of two classes only the difference of their scores is blended. Of windows in a row that hold
    one value only, the same one, the first is run.

    Args:
        stream: the network, such as the `stream` of a runtime's session.
        prepared: what `prepare` returned for the image.
        pipeline: the one that prepared it.
        batch: windows per call; the last call is filled up with copies.

    Returns:
        uint8 label map of the image's spatial shape (uint16 with more than 256 classes); of regions that overlap, bool
        masks (regions, *shape).

    Raises:
        OptionError: the batch is not positive.
        DataError: NaN in the scores, or a number of channels that does not fit the classes.
        GeometryError: the output does not have the spatial size of the input.
    """
    with contextlib.closing(segment_each(stream, [prepared], pipeline, batch=batch)) as each:
        labels = next(each)
    if isinstance(labels, DataError):
        raise labels
    return labels


def segment_each(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline, *, batch: int = 1
) -> Generator[Array | DataError, None, None]:
    """The label maps of many prepared images, in order, as `segment_streamed` makes them.

    Where the pipeline gives all inputs of the network one shape, the windows of all images go through one stream: the
    network does not wait at an image's end. The next images are then taken before the labels of one are handed out.

    Yields:
        An image's label map, or what was wrong with the network's output for it; the others go on.

    Raises:
        OptionError: the batch is not positive.
    """
    if batch < 1:
        raise OptionError(f"The batch must be at least 1, not {batch}.")
    yield from passed(stream, (Passage(prepared, pipeline, batch) for prepared in images), pipeline)


def passed(stream: Stream, passages: Iterable[Passage], pipeline: Pipeline) -> Generator[Array | DataError, None, None]:
    """Send images through the network, in order: all through one stream where its inputs have one shape."""
    if pipeline.input_shape is not None:
        yield from _through(stream, passages)
        return
    for passage in passages:
        yield from _through(stream, [passage])


class Passage:
    """One image on its way through the network.

    Attributes:
        prepared: the image.
        pipeline: the one that prepared it.
        plan: its windows.
        left: results that have not come yet.
    """

    def __init__(self, prepared: Prepared, pipeline: Pipeline, batch: int) -> None:
        """Plan its windows, `batch` at a time."""
        self.plan = plan_windows(prepared, pipeline)
        self.prepared, self.pipeline, self._batch = prepared, pipeline, batch
        runs = [window for window in self.plan.windows if not window.again]
        self._groups = [runs[first : first + batch] for first in range(0, len(runs), batch)]
        self.left = len(self._groups)

    def inputs(self) -> Iterator[Batch]:
        """What the network is given: float32 (batch, C, *patch), with what it takes beside that."""
        array, patch, batch, slices = self.plan.array, self.plan.patch, self._batch, self.pipeline.slices
        for group in self._groups:
            tiles = [window.flip(input_of(array, window.corner, patch, slices)) for window in group]
            tiles = tiles if slices is None else [tile[:, 0] for tile in tiles]
            x = tiles[0][None] if batch == 1 else np.stack(tiles + tiles[-1:] * (batch - len(tiles)))
            yield batch_of(x, self.prepared.numbers, self.pipeline)

    def outputs(self, results: Iterator[Batch]) -> Iterator[tuple[Window, Array]]:
        """Every window with the network's scores (K, *patch) for it, mirrored back.

        The scores of the last constant window are kept: they are those of the next ones, if these hold the same value.
        """
        runs = self._runs(results)
        for window in self.plan.windows:
            if not window.again:
                scores = next(runs)
                if window.constant:
                    kept = scores.copy()
            yield window, window.flip(kept if window.again else scores)

    def _runs(self, results: Iterator[Batch]) -> Iterator[Array]:
        """The network's scores (K, *patch) for every window that it is given."""
        for group in self._groups:
            result = next(results)
            self.left -= 1
            scores = scores_of(result, self.pipeline)
            if self.pipeline.slices is not None:
                scores = scores[:, :, None]
                require_windows(scores, self._batch, self.plan.patch)
            elif self.pipeline.patch is None:
                require_size(scores[0], self.prepared)
            else:
                require_windows(scores, self._batch, self.plan.patch)
            yield from scores[: len(group)]

    def labels(self, results: Iterator[Batch], *, difference: bool = True) -> Array:
        """The label map, from the results for the inputs.

        Raises:
            DataError: they cannot be used.
            _Undecided: they can, but not by the difference of two channels.
        """
        prepared, pipeline, dtype = self.prepared, self.pipeline, label_type(self.pipeline)
        size = decided_size(prepared, pipeline)
        if not self._groups:  # every window is empty
            return restored(np.zeros(size, dtype), prepared, pipeline)
        outputs = self.outputs(results)
        first = next(outputs)
        channels = first[1].shape[0]
        threshold = foreground_threshold(channels, pipeline)
        base = threshold - BELOW * (1 + abs(threshold)) if threshold is not None and pipeline.skip_empty else 0.0
        whole = not streamable(prepared, pipeline)
        difference = difference and threshold is None and channels == 2 and not whole
        blocks = blend(itertools.chain([first], outputs), self.plan, difference=difference, base=base)
        if whole:
            scores = np.empty((channels, *prepared.array.shape[1:]), np.float32)
            for plane, block in blocks:
                scores[:, plane : plane + block.shape[1]] = block
            return finish_segmentation(scores, prepared, pipeline)
        blocks = _checked(blocks, difference)
        if goes_back(prepared, pipeline):
            grid: dict[str, Any] = {"apart": prepared.apart, "steps": prepared.steps_back}
            blocks = resampled_planes(blocks, prepared.content, size, how=pipeline.score_interpolation, **grid)
        labels = np.empty(size, dtype)
        for plane, block in blocks:
            labels[plane : plane + block.shape[1]] = _labels(block, threshold, pipeline)
        return restored(labels, prepared, pipeline)


def _through(stream: Stream, passages: Iterable[Passage]) -> Generator[Array | DataError, None, None]:
    """Send the inputs of all passages through one stream."""
    waiting: deque[Passage] = deque()

    def inputs() -> Iterator[Batch]:
        for passage in passages:
            waiting.append(passage)
            yield from passage.inputs()

    results = stream(inputs())
    try:
        while True:
            first = next(results, None)  # before this, nobody knows which passage is the next
            while waiting and not waiting[0].left:
                yield waiting.popleft().labels(iter(()))
            if first is None:
                return
            passage, again = waiting.popleft(), False
            labels: Array | DataError
            try:
                labels = passage.labels(itertools.chain([first], results))
            except _Undecided:
                again = True
            except DataError as error:
                labels = error
            for _ in range(passage.left):  # of an image that was given up; the next results are another's
                next(results)
            if again:
                labels = _all_channels(stream, passage)
            yield labels
    finally:
        if isinstance(results, Generator):
            results.close()  # now, and not when the last traceback is gone: the network may be running


def _all_channels(stream: Stream, passage: Passage) -> Array | DataError:
    """Run an image once more, and blend both channels."""
    try:
        return passage.labels(stream(passage.inputs()), difference=False)
    except DataError as error:
        return error


def _labels(block: Array, threshold: float | None, pipeline: Pipeline) -> Array:
    """Labels of blended scores (K, *S); of one channel, whether it is above the threshold, or above 0."""
    if block.shape[0] > 1 or pipeline.regions is not None:
        return decided(block, threshold, pipeline)
    positive: Array = block[0] > np.float32(threshold or 0.0)
    return positive.astype(label_type(pipeline))


def _checked(blocks: Blocks, difference: bool) -> Blocks:
    """Refuse NaN.

    Raises:
        DataError: the network returned it.
        _Undecided: it is the difference of two infinite scores, perhaps.
    """
    for first, block in blocks:
        if math.isnan(block.min()):
            raise _Undecided if difference else DataError(*NAN)
        yield first, block
