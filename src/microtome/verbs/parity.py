"""`parity`: whether each of a package's files computes what its network does, layer by layer and case by case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from microtome.deployment.parity import TOLERANCE, Ladder
from microtome.deployment.timing import eager
from microtome.errors import DataError, MicrotomeError, OptionError
from microtome.evidence.comparison import streamed
from microtome.graph import pt2
from microtome.graph.coded import NETWORK
from microtome.graph.network import Network
from microtome.inference.jobs import Given, jobs_of, with_further
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, prepare
from microtome.medical.read import read_image
from microtome.medical.read import with_further as and_beside
from microtome.models import load_model
from microtome.package import Package, open_package, read_result, target_folder
from microtome.progress import Progress, Silent
from microtome.runtimes import runtime
from microtome.tasks import task
from microtome.tasks.base import Task, predict_one
from microtome.types import Array, Batch

CASES = 8
DECISIONS = "classification"


def parity(
    package: str | Path,
    images: Sequence[str | Path] | Given,
    *,
    parent: str | Path | None = None,
    target: str | None = None,
    cases: int = CASES,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a package's files with the network that they were written from, on images.

    The network is simulated in PyTorch. For each target its file runs beside that on every image; and a copy that
    returns every value on a grid says, for the first window of each image, which layer computes something else.

    Args:
        package: a folder that `compress` wrote.
        images: as `predict` takes them; nothing is written.
        parent: the uncompressed network: how far compression moved the predictions, before any runtime.
        target: only this one; None is all of the package.
        cases: at most so many images.
        threads: of the runtimes; 0 lets them choose.
        progress: told of each image.

    Returns:
        `tolerance`, what counts as departing; `targets`: by name `precision`, `rungs` (see `results.Rung`), `departs`
        (the first layer that does, or None), `cases` (of each image `agreement`, the share of equal labels, None where
        a prediction is no label, and `largest`, of the scores' differences), `agreement` (their mean), or `skipped`,
        why a target was not compared; and with a parent also `parent`, with `cases` and `agreement` of the simulation.

    Raises:
        MicrotomeError: of the kind that says what is wrong.
    """
    progress, folder = progress or Silent(), Path(package)
    listed = read_result(folder).get("targets") or {read_result(folder)["target"]: {}}
    names = [target] if target is not None else list(listed)
    first = open_package(folder, target=names[0], threads=threads) if runtime(names[0]).measurable() else None
    pipeline = first.pipeline if first is not None else Pipeline.from_json((folder / "pipeline.json").read_text())
    given = images if isinstance(images, Given) else Given(images)
    jobs = with_further(jobs_of(given.images, pipeline.channels), pipeline, given.further)[:cases]
    if not jobs:
        raise DataError("there is no image to compare on.", "Give image files, or folders that hold them.")

    def prepared(title: str) -> Iterator[Prepared]:
        for job in progress.track(jobs, title, len(jobs)):
            yield prepare(and_beside(read_image(job.files, job.index), job.inputs), pipeline)

    result: dict[str, Any] = {"tolerance": TOLERANCE, "targets": {}}
    for name in names:
        try:
            opened = open_package(folder, target=name, threads=threads)
            result["targets"][name] = _of_target(opened, network_of(folder, name), prepared(name), threads)
        except MicrotomeError as error:
            if target is not None:
                raise
            result["targets"][name] = {"skipped": str(error)}
    if parent is not None:
        uncompressed = load_model(str(parent), pipeline=pipeline).network
        sides = [streamed(eager(one, threads)) for one in (uncompressed, network_of(folder, names[0]))]
        kind = task(pipeline.task)
        result["parent"] = _summary(
            [
                compared(kind, *(predict_one(kind, side, image, pipeline) for side in sides))
                for image in prepared("parent")
            ]
        )
    return result


def network_of(folder: Path, target: str) -> Network:
    """Return the network that a package's file for a target was written from.

    Raises:
        OptionError: the package does not have it.
    """
    result = read_result(folder)
    if target == result["target"]:
        return load_model(str(folder)).network
    file = folder / target_folder(target) / NETWORK
    if not file.is_file():
        raise OptionError(
            f"{folder} has no {file.relative_to(folder)}: it was made before such files were kept, or is coded.",
            "Compress again, without --coded.",
        )
    return pt2.load(file)


class _Simulated:
    """A network in PyTorch that notes the first input it was given since that was last taken."""

    def __init__(self, network: Network, threads: int) -> None:
        self._run = eager(network, threads)
        self._first: Batch | None = None

    def stream(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs one after another."""
        for batch in batches:
            if self._first is None:
                arrays = batch if isinstance(batch, Mapping) else {"": batch}
                kept = {name: np.array(value[:1]) for name, value in arrays.items()}
                self._first = kept if isinstance(batch, Mapping) else kept[""]
            yield self._run(batch)

    def take(self) -> Batch:
        """Return that input."""
        found, self._first = self._first, None
        assert found is not None
        return found


def _of_target(package: Package, network: Network, images: Iterator[Prepared], threads: int) -> dict[str, Any]:
    """Compare one file with its network."""
    pipeline, kind = package.pipeline, task(package.pipeline.task)
    chosen, precision = runtime(package.result["session"]["runtime"]), package.result["session"]["precision"]
    ladder = Ladder(network, chosen, threads=threads, precision=precision)
    simulated = _Simulated(network, threads)
    cases = []
    for image in images:
        ours = predict_one(kind, simulated.stream, image, pipeline)
        theirs = predict_one(kind, package.session.stream, image, pipeline)
        ladder.climb(simulated.take())
        cases.append(compared(kind, ours, theirs))
    rungs = ladder.rungs()
    departs = next((rung["layer"] for rung in rungs if rung["departs"]), None)
    return {"precision": precision, "rungs": rungs, "departs": departs, **_summary(cases)}


def compared(kind: Task, one: Array, other: Array) -> dict[str, Any]:
    """Return the share of equal labels of two predictions, and the largest difference of what they hold otherwise.

    Args:
        kind: of task.
        one: a prediction, see `Package.predict`.
        other: of the same image.
    """
    one, other = np.asarray(one), np.asarray(other)
    if kind.MAPS and not np.issubdtype(one.dtype, np.floating):
        return {"agreement": float(np.mean(one == other)), "largest": None}
    gap = float(np.max(np.abs(one - other), initial=0.0)) if one.shape == other.shape else None
    alike = float(np.argmax(one) == np.argmax(other)) if kind.NAME == DECISIONS else None
    return {"agreement": alike, "largest": gap}


def _summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    shares = [case["agreement"] for case in cases if case["agreement"] is not None]
    return {"cases": cases, "agreement": fmean(shares) if shares else None}
