"""`predict`: images in, label maps or class probabilities out. Reading, the network and writing overlap."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microtome.clinical.classification import decide
from microtome.environment import peak_memory_mib
from microtome.errors import DataError, MicrotomeError, OptionError
from microtome.files import sha256
from microtome.inference.jobs import Job, jobs_of
from microtome.inference.output import TABLE, Predictions
from microtome.inference.prefetch import Case, Reader, Writer
from microtome.medical.infer import probabilities
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared
from microtome.medical.stream import Settings, Stream, segment_each
from microtome.package import Package, open_package
from microtome.progress import Progress, Silent
from microtome.types import Array

EXTENSIONS = ("nii.gz", "nii")
STAGES = ("read", "prepare", "infer", "finish", "write")


def predict(  # noqa: PLR0913 - each is an option of the command line
    package: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    threads: int = 0,
    overlap: float | None = None,
    mirror: Sequence[int] = (),
    skip_empty: bool = False,
    overwrite: bool = False,
    extension: str = "nii.gz",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a package on image files.

    Segmentation writes one label map per image, on the image's own grid: NIfTI for volumes, PNG for pictures.
    Classification writes `predictions.csv`, one row per image: name, decision at the package's operating point (without
    one, the class of highest probability), and the probability of each class. The next image is read and the last one
    written while the network runs; one image waits at most, beside those in the network, however many there are.

    `predict.json` in `out` records package, settings, and the seconds of each stage of each image. An image that is
    finished is not done again by the same package with the same settings. One that fails does not stop the others.

    Args:
        package: a folder that `compress` wrote.
        inputs: image files, DICOM series, and folders that hold them, see `inference.jobs.jobs_of`.
        out: folder to fill.
        threads: of the runtime; 0 lets it choose.
        overlap: of neighbouring windows, instead of the pipeline's, in [0, 1).
        mirror: spatial axes of the network's grid along which scores are averaged over both directions.
        skip_empty: do not run windows that hold one value only; they count as background. The result may differ.
        overwrite: do everything anew, into a folder that may hold something else.
        extension: of label maps of volumes: `nii.gz` or `nii`.
        progress: told of each image.

    Returns:
        `cases` (predicted by this run), `skipped` (finished before), `failed` (name, problem and hint of each),
        `seconds` and `cases_per_second` of this run without opening the package, `stages` (median milliseconds of read,
        prepare, infer: waiting for the network, finish: blending and the way back to labels, write), and
        `peak_memory_mib`.

    Raises:
        OptionError: settings that make no sense for this package.
        ReadError: the package is broken, an input does not exist, or there is no image.
        OutputError: `out` holds something else, or cannot be written; what is finished is kept.
    """
    progress, out = progress or Silent(), Path(out)
    opened = open_package(package, threads=threads)
    settings = Settings(overlap=overlap, mirror=tuple(mirror), skip_empty=skip_empty)
    _check(opened.pipeline, settings, extension)
    jobs = jobs_of(inputs)
    task = {
        "package": _identity(opened),
        "overlap": overlap,
        "mirror": list(mirror),
        "skip_empty": skip_empty,
        "extension": extension,
    }
    place = Predictions(out, task, overwrite=overwrite)
    suffix = "png" if opened.pipeline.spatial_dims == 2 else extension
    labels = opened.pipeline.task == "segmentation"
    files = {job.name: f"{job.name}.{suffix}" if labels else TABLE for job in jobs}
    todo = [job for job in jobs if not place.has(job, files[job.name])]
    begin = time.perf_counter()
    with place:
        _Run(opened, place, progress, settings).run(todo, files)
    return _numbers(place, jobs, todo, time.perf_counter() - begin)


def _numbers(place: Predictions, jobs: Sequence[Job], todo: Sequence[Job], seconds: float) -> dict[str, Any]:
    laps = place.seconds_of([job.name for job in todo])
    return {
        "cases": len(laps),
        "skipped": len(jobs) - len(todo),
        "failed": place.failed,
        "seconds": round(seconds, 3),
        "cases_per_second": round(len(laps) / seconds, 3) if laps else 0.0,
        "stages": {name: round(1e3 * float(np.median([lap[name] for lap in laps])), 3) for name in STAGES if laps},
        "peak_memory_mib": peak_memory_mib(),
        "out": str(place.out),
    }


def _check(pipeline: Pipeline, settings: Settings, extension: str) -> None:
    if extension not in EXTENSIONS:
        raise OptionError(f"The extension must be {' or '.join(EXTENSIONS)}, not {extension!r}.")
    if pipeline.task == "classification" and settings != Settings():
        raise OptionError(
            "Overlap, mirroring and skipping are for segmentation; this package classifies.", "Leave them out."
        )
    if settings.overlap is not None and pipeline.patch is None:
        raise OptionError("This package takes whole images: there are no windows to overlap.", "Leave the overlap out.")
    settings.require(pipeline)


def _identity(package: Package) -> dict[str, Any]:
    return {**package.result["session"]["sha256"], "pipeline.json": sha256(package.folder / "pipeline.json")}


class _Run:
    """The stages, each in its own thread: the network's is the one that calls."""

    def __init__(self, package: Package, place: Predictions, progress: Progress, settings: Settings) -> None:
        self._package, self._place, self._progress, self._settings = package, place, progress, settings
        self._under_way: deque[Case] = deque()
        self._reading = self._waiting = 0.0  # seconds of this thread: for images, and for results and images

    def run(self, jobs: Sequence[Job], files: Mapping[str, str]) -> None:
        """Predict all images.

        Raises:
            BaseException: what went wrong that was not the fault of one image; what was finished is written.
        """
        pipeline, writer = self._package.pipeline, Writer()
        reader = Reader(jobs, pipeline)
        images, stream = self._images(reader, jobs), self._timed(self._package.session.stream)
        if pipeline.task == "segmentation":
            outcomes = segment_each(stream, images, pipeline, self._settings)
        else:
            outcomes = _classify_each(stream, images, pipeline)
        try:
            begin = time.perf_counter()
            for outcome in outcomes:
                case = self._under_way.popleft()
                case.seconds["infer"] = self._waiting - self._reading
                case.seconds["finish"] = time.perf_counter() - begin - self._waiting
                if isinstance(outcome, MicrotomeError):
                    self._fail(case, outcome)
                else:
                    writer.give(self._writing(case, outcome, files[case.job.name]))
                begin, self._reading, self._waiting = time.perf_counter(), 0.0, 0.0
        finally:
            outcomes.close()
            reader.stop()
            writer.stop()
        writer.check()

    def _images(self, reader: Reader, jobs: Sequence[Job]) -> Iterator[Prepared]:
        """What can be read."""
        for _ in self._progress.track(jobs, "predict", len(jobs)):
            begin = time.perf_counter()
            case = reader.take()
            self._reading += time.perf_counter() - begin
            prepared, case.prepared = case.prepared, None  # not needed for writing
            if prepared is not None:
                self._under_way.append(case)
                yield prepared
            elif isinstance(case.error, MicrotomeError):
                self._fail(case, case.error)
            elif case.error is not None:
                raise case.error

    def _timed(self, stream: Stream) -> Stream:
        """The same, with the time that is spent waiting for results."""

        def timed(batches: Iterable[Array]) -> Iterator[Array]:
            results = stream(batches)
            while True:
                begin = time.perf_counter()
                result = next(results, None)
                self._waiting += time.perf_counter() - begin
                if result is None:
                    return
                yield result

        return timed

    def _writing(self, case: Case, outcome: Array, file: str) -> Callable[[], None]:
        if self._package.pipeline.task == "segmentation":
            grid = case.grid
            assert grid is not None
            return lambda: self._place.add_labels(case.job, file, outcome, grid, case.seconds)
        row = _row(self._package, outcome)
        return lambda: self._place.add_row(case.job, row, case.seconds)

    def _fail(self, case: Case, error: MicrotomeError) -> None:
        self._place.fail(case.job, error)
        self._progress.say(f"case {case.number}: {error.problem}")


def _classify_each(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
) -> Generator[Array | DataError, None, None]:
    """The class probabilities of many prepared images, or what was wrong with the network's output for one."""
    inputs = (prepared.array[None] for prepared in images)
    streams = (stream(inputs),) if pipeline.input_shape is not None else (stream([x]) for x in inputs)
    for result in itertools.chain.from_iterable(streams):
        try:
            outcome: Array | DataError = probabilities(np.asarray(result)[:1], pipeline)[0]
        except DataError as error:
            outcome = error
        yield outcome


def _row(package: Package, values: Array) -> dict[str, str]:
    """The decision, and the probability of each class."""
    point, classes = package.result.get("operating_point"), package.pipeline.classes
    decision = int(decide(values[None], threshold=None if point is None else point["threshold"])[0])
    columns = {f"probability {name}": f"{value:.9g}" for name, value in zip(classes, values, strict=True)}
    return {"decision": classes[decision], **columns}
