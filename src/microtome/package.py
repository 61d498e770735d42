"""The package folder, opened without torch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from microtome.entropy.packages import coded_files
from microtome.errors import OptionError, ReadError
from microtome.files import sha256
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.results import Result, SessionFiles
from microtome.runtimes import TARGETS, runtime
from microtome.runtimes.base import Session, open_content
from microtome.tasks import task
from microtome.tasks.base import predict_one
from microtome.types import Array, Image

SCHEMA = 1


@dataclass(frozen=True)
class Package:
    """A compressed network, ready to run.

    Attributes:
        folder: where it lies.
        pipeline: pre- and post-processing.
        session: the runtime with the model file loaded.
        result: the whole of the target's `result.json`.
    """

    folder: Path
    pipeline: Pipeline
    session: Session
    result: Result

    def predict(self, image: Image) -> Array:
        """Return what the task predicts: a label map on the image's own grid, masks (regions, *grid), probabilities.

        What the network takes beside the image comes with it: `Image.inputs`, numbers as the network takes them.
        """
        return predict_one(task(self.pipeline.task), self.session.stream, prepare(image, self.pipeline), self.pipeline)

    def label_map(self, prediction: Array) -> Array:
        """Return a predicted map as the one label map that `microtome predict` writes."""
        return task(self.pipeline.task).label_map(prediction, self.pipeline)


def open_package(folder: Path | str, *, target: str | None = None, threads: int = 0) -> Package:
    """Open a package that `compress` wrote. Needs the runtime that it was made for, and no torch.

    The files of a coded package are decoded into memory, and checked like others.

    Args:
        folder: the package.
        target: which of its targets; None is the first. A runtime of another package is imported only if it is named
            here, by its dotted path, or is imported already.
        threads: of the runtime; 0 lets it choose.

    Raises:
        ReadError: it is no package, a file is missing, or a file is not the one that was measured.
        OptionError: it has no such target.
        MissingExtraError: its runtime is not installed.
    """
    folder = Path(folder)
    place, result = _part(folder, target)
    pipeline_file = folder / "pipeline.json"
    if not pipeline_file.exists():
        raise ReadError(f"{folder} has no pipeline.json.", "Copy the whole package folder.")
    deployed = result.get("session")
    if not isinstance(deployed, dict):
        raise ReadError(f"{folder}/result.json does not say which runtime the package is for.", "Compress again.")
    if sha256(pipeline_file) != deployed.get("pipeline_sha256", sha256(pipeline_file)):
        raise _changed(pipeline_file)
    name = deployed["runtime"]
    if name not in (*TARGETS, target) and name not in sys.modules:
        raise ReadError(
            f"{folder} is for the runtime {name} of another package.", f"If you trust it, name it: target={name!r}."
        )
    chosen = runtime(name)
    model, coded = place / deployed["file"], coded_files(folder)
    files: dict[str, bytes] = {}
    for file in chosen.files(model):
        content = coded.get(file.relative_to(folder).as_posix())
        if content is not None:
            files[file.name] = content
        elif coded or not file.exists():
            raise ReadError(f"{place} has no {file.name}.", "Copy the whole package folder.")
        found = sha256(file) if content is None else hashlib.sha256(content).hexdigest()
        if found != deployed["sha256"].get(file.name):
            raise _changed(file)
    if coded:
        session = open_content(chosen, model, files, threads=threads, precision=deployed["precision"])
    else:
        session = chosen.open_session(model, threads=threads, precision=deployed["precision"])
    return Package(folder, Pipeline.from_json(pipeline_file.read_text()), session, result)


def _changed(file: Path) -> ReadError:
    return ReadError(
        f"{file} is not the file that was measured: its SHA-256 differs from the one in result.json.",
        "Copy the package again from its source, or compress again.",
    )


def target_folder(name: str) -> Path:
    """Return where a package has the files of a target, relative to its folder."""
    return Path("targets", name)


def _part(folder: Path, target: str | None) -> tuple[Path, Result]:
    """Return the result of a target, and the folder that its files are named from."""
    result = read_result(folder)
    targets: Mapping[str, SessionFiles] = result.get("targets") or {}
    if not targets:  # older packages have one, and no list
        targets = {result.get("target", ""): result.get("session") or {}}
    found = next((name for name, entry in targets.items() if target in (name, entry.get("runtime"))), None)
    if target is None or found == result.get("target"):
        return folder, result
    if found is None:
        raise OptionError(f"{folder} has no target {target!r}.", f"It has {', '.join(map(str, targets))}.")
    place = folder / target_folder(found)
    return place, read_result(place)


def read_result(folder: Path) -> Result:
    """Read a package's `result.json`.

    Raises:
        ReadError: missing, broken, or of another schema.
    """
    path = folder / "result.json"
    if not path.exists():
        raise ReadError(f"{folder} is not a package: it has no result.json.", "Give the folder that `compress` wrote.")
    try:
        result: Result = json.loads(path.read_text())
    except ValueError as error:
        raise ReadError(f"{path} is broken ({error}).", "Compress again.") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ReadError(f"{path} is not of schema {SCHEMA}.", "Use the version of microtome that wrote it.")
    return result
