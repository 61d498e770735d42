"""The package folder, opened without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import ReadError
from microtome.files import sha256
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.runtimes import runtime
from microtome.runtimes.base import Session
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
        result: the whole of `result.json`.
    """

    folder: Path
    pipeline: Pipeline
    session: Session
    result: Mapping[str, Any]

    def predict(self, image: Image) -> Array:
        """Return what the task predicts, such as a label map on the image's own grid, or class probabilities."""
        return predict_one(task(self.pipeline.task), self.session.stream, prepare(image, self.pipeline), self.pipeline)


def open_package(folder: Path | str, *, threads: int = 0) -> Package:
    """Open a package that `compress` wrote. Needs the runtime that it was made for, and no torch.

    Args:
        folder: the package.
        threads: of the runtime; 0 lets it choose.

    Raises:
        ReadError: it is no package, a file is missing, or a file is not the one that was measured.
        MissingExtraError: its runtime is not installed.
    """
    folder = Path(folder)
    result = read_result(folder)
    pipeline_file = folder / "pipeline.json"
    if not pipeline_file.exists():
        raise ReadError(f"{folder} has no pipeline.json.", "Copy the whole package folder.")
    deployed = result.get("session")
    if not isinstance(deployed, dict):
        raise ReadError(f"{folder}/result.json does not say which runtime the package is for.", "Compress again.")
    if sha256(pipeline_file) != deployed.get("pipeline_sha256", sha256(pipeline_file)):
        raise _changed(pipeline_file)
    chosen = runtime(deployed["runtime"])
    model = folder / deployed["file"]
    for file in chosen.files(model):
        if not file.exists():
            raise ReadError(f"{folder} has no {file.name}.", "Copy the whole package folder.")
        if sha256(file) != deployed["sha256"].get(file.name):
            raise _changed(file)
    session = chosen.open_session(model, threads=threads, precision=deployed["precision"])
    return Package(folder, Pipeline.from_json(pipeline_file.read_text()), session, result)


def _changed(file: Path) -> ReadError:
    return ReadError(
        f"{file} is not the file that was measured: its SHA-256 differs from the one in result.json.",
        "Copy the package again from its source, or compress again.",
    )


def read_result(folder: Path) -> dict[str, Any]:
    """Read a package's `result.json`.

    Raises:
        ReadError: missing, broken, or of another schema.
    """
    path = folder / "result.json"
    if not path.exists():
        raise ReadError(f"{folder} is not a package: it has no result.json.", "Give the folder that `compress` wrote.")
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ReadError(f"{path} is broken ({error}).", "Compress again.") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ReadError(f"{path} is not of schema {SCHEMA}.", "Use the version of microtome that wrote it.")
    return result
