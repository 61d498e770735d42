"""`predict`: images in, label maps or rows of a table out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microtome.environment import peak_memory_mib
from microtome.errors import OptionError
from microtome.files import sha256
from microtome.inference.jobs import Given, Job, jobs_of, with_further
from microtome.inference.output import Predictions
from microtome.inference.stream import predict_all
from microtome.package import Package, open_package
from microtome.progress import Progress, Silent
from microtome.tasks import task

EXTENSIONS = ("nii.gz", "nii")
STAGES = ("read", "prepare", "infer", "finish", "write")


def predict(
    package: str | Path,
    inputs: Sequence[str | Path] | Given,
    out: str | Path,
    *,
    target: str | None = None,
    threads: int = 0,
    overwrite: bool = False,
    extension: str = "nii.gz",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a package on image files.

    Predictions that are maps are written one file per image, on the image's own grid: NIfTI for volumes, PNG for
    pictures, and TIFF where the network makes pictures. Others fill `predictions.csv`, one row per image, such as its
    name, the decision at the package's operating point (without one, the class of highest probability), and the
    probability of each class. The next image
    is read and the last one written while the network runs; one image waits at most, beside those in the network,
    however many there are. Windows, overlap, mirroring and what is skipped are the package's own: with others nothing
    was measured.

    `predict.json` in `out` records package, settings, and the seconds of each stage of each image. An image that is
    finished is not done again by the same package with the same settings. One that fails does not stop the others.

    Args:
        package: a folder that `compress` wrote.
        inputs: image files, DICOM series, and folders that hold them, see `inference.jobs.jobs_of`; with what the
            network takes beside them, if it does.
        out: folder to fill.
        target: which of the package's targets; None is the first.
        threads: of the runtime; 0 lets it choose.
        overwrite: do everything anew, into a folder that may hold something else.
        extension: of maps of volumes: `nii.gz` or `nii`.
        progress: told of each image.

    Returns:
        `cases` (predicted by this run), `skipped` (finished before), `failed` (name, problem and hint of each),
        `notes` (what had to be assumed to read the images),
        `seconds` and `cases_per_second` of this run without opening the package, `stages` (median milliseconds of read,
        prepare, infer: waiting for the network, finish: blending and the way back to labels, write), and
        `peak_memory_mib`.

    Raises:
        OptionError: an extension, a target or an input that does not exist.
        DataError: something that the network takes beside an image is missing, or no number.
        ReadError: the package is broken, an input does not exist, or there is no image.
        OutputError: `out` holds something else, or cannot be written; what is finished is kept.
    """
    progress, out = progress or Silent(), Path(out)
    if extension not in EXTENSIONS:
        raise OptionError(f"The extension must be {' or '.join(EXTENSIONS)}, not {extension!r}.")
    opened = open_package(package, target=target, threads=threads)
    given = inputs if isinstance(inputs, Given) else Given(inputs)
    jobs = with_further(jobs_of(given.images, opened.pipeline.channels), opened.pipeline, given.further)
    kind = task(opened.pipeline.task)
    identity = {"package": _identity(opened), "extension": extension}
    place = Predictions(out, identity, table=kind.TABLE, overwrite=overwrite)
    suffix = kind.PICTURES if opened.pipeline.spatial_dims == 2 else extension
    files = {job.name: f"{job.name}.{suffix}" if kind.MAPS else kind.TABLE for job in jobs}
    todo = [job for job in jobs if not place.has(job, files[job.name])]
    begin = time.perf_counter()
    with place:
        predict_all(opened, place, progress, todo, files)
        place.collect(lambda rows, names: kind.collected(rows, names, opened.pipeline))
    return _numbers(place, jobs, todo, time.perf_counter() - begin)


def _numbers(place: Predictions, jobs: Sequence[Job], todo: Sequence[Job], seconds: float) -> dict[str, Any]:
    laps = place.seconds_of([job.name for job in todo])
    return {
        "cases": len(laps),
        "skipped": len(jobs) - len(todo),
        "failed": place.failed,
        "notes": list(place.remarks.sentences),
        "seconds": round(seconds, 3),
        "cases_per_second": round(len(laps) / seconds, 3) if laps else 0.0,
        "stages": {name: round(1e3 * float(np.median([lap[name] for lap in laps])), 3) for name in STAGES if laps},
        "peak_memory_mib": peak_memory_mib(),
        "out": str(place.out),
    }


def _identity(package: Package) -> dict[str, Any]:
    return {**package.result["session"]["sha256"], "pipeline.json": sha256(package.folder / "pipeline.json")}
