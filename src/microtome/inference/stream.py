"""Reading, the network and writing at the same time: what `predict` and every service run."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from microtome.errors import MicrotomeError
from microtome.inference.jobs import Job
from microtome.inference.output import Predictions
from microtome.inference.prefetch import BackgroundWriter, Pending, Prefetcher
from microtome.medical.prepare import Prepared
from microtome.medical.stream import TimedStream
from microtome.package import Package
from microtome.progress import Progress
from microtome.tasks import task
from microtome.types import Array


def predict_all(
    package: Package, place: Predictions, progress: Progress, jobs: Sequence[Job], files: Mapping[str, str]
) -> None:
    """Predict images, each written while the next one runs and the one after that is read.

    Args:
        package: opened.
        place: takes the predictions, and what was wrong with single images.
        progress: told of each image.
        jobs: the images.
        files: the file of each job's prediction, by its name.

    Raises:
        BaseException: what went wrong that was not the fault of one image; what was finished is written.
    """
    _Run(package, place, progress).run(jobs, files)


class _Run:
    """The stages, each in its own thread: the network's is the one that calls."""

    def __init__(self, package: Package, place: Predictions, progress: Progress) -> None:
        self._package, self._place, self._progress = package, place, progress
        self._kind = task(package.pipeline.task)
        self._under_way: deque[Pending] = deque()
        self._stream = TimedStream(package.session.stream)
        self._reading = 0.0  # seconds of this thread that went into waiting for images

    def run(self, jobs: Sequence[Job], files: Mapping[str, str]) -> None:
        """Predict all images.

        Raises:
            BaseException: what went wrong that was not the fault of one image; what was finished is written.
        """
        pipeline, writer = self._package.pipeline, BackgroundWriter()
        reader = Prefetcher(jobs, pipeline)
        outcomes = self._kind.predict(self._stream, self._images(reader, jobs), pipeline)
        try:
            begin = time.perf_counter()
            for outcome in outcomes:
                case = self._under_way.popleft()
                case.seconds["infer"] = self._stream.seconds - self._reading
                case.seconds["finish"] = time.perf_counter() - begin - self._stream.seconds
                if isinstance(outcome, MicrotomeError):
                    self._fail(case, outcome)
                else:
                    writer.give(self._writing(case, outcome, files[case.job.name]))
                begin, self._reading, self._stream.seconds = time.perf_counter(), 0.0, 0.0
        finally:
            outcomes.close()
            reader.stop()
            writer.stop()
        writer.check()

    def _images(self, reader: Prefetcher, jobs: Sequence[Job]) -> Iterator[Prepared]:
        """What can be read."""
        for _ in self._progress.track(jobs, "predict", len(jobs)):
            begin = time.perf_counter()
            case = reader.take()
            self._reading += time.perf_counter() - begin
            prepared, case.prepared = case.prepared, None  # not needed for writing
            if prepared is not None:
                self._place.remarks.add(case.job.name, case.notes)
                self._under_way.append(case)
                yield prepared
            elif isinstance(case.error, MicrotomeError):
                self._fail(case, case.error)
            elif case.error is not None:
                raise case.error

    def _writing(self, case: Pending, outcome: Array, file: str) -> Callable[[], None]:
        if self._kind.MAPS:
            grid = case.grid
            assert grid is not None
            write = functools.partial(self._kind.write, outcome, grid, pipeline=self._package.pipeline)
            return lambda: self._place.add_file(case.job, file, write, case.seconds)
        pipeline = self._package.pipeline
        rows = self._kind.rows(outcome, pipeline, self._package.result.get("operating_point"))
        return lambda: self._place.add_rows(case.job, rows, self._kind.columns(pipeline), case.seconds)

    def _fail(self, case: Pending, error: MicrotomeError) -> None:
        self._place.fail(case.job, error)
        self._progress.say(f"case {case.number}: {error.problem}")
