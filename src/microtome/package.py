"""The package folder: written beside its place and moved there when it is whole; opened without torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import OutputError, ReadError
from microtome.medical.infer import classify
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.stream import segment_streamed
from microtome.runtimes import runtime
from microtome.runtimes.base import Session
from microtome.types import Array, Image

SCHEMA = 1
STATE = "state.json"


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
        """Return the label map on the image's own grid (segmentation) or the class probabilities (classification)."""
        if self.pipeline.task == "segmentation":
            return segment_streamed(self.session.stream, prepare(image, self.pipeline), self.pipeline)
        return classify(self.session.run, image, self.pipeline)


def open_package(folder: Path | str, *, threads: int = 0) -> Package:
    """Open a package that `compress` wrote. Needs the runtime that it was made for, and no torch.

    Args:
        folder: the package.
        threads: of the runtime; 0 lets it choose.

    Raises:
        ReadError: it is no package, a file is missing, or the model file is not the one that was measured.
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
    chosen = runtime(deployed["runtime"])
    model = folder / deployed["file"]
    for file in chosen.files(model):
        if not file.exists():
            raise ReadError(f"{folder} has no {file.name}.", "Copy the whole package folder.")
        if sha256(file) != deployed["sha256"].get(file.name):
            raise ReadError(
                f"{file} is not the file that was measured: its SHA-256 differs from the one in result.json.",
                "Copy the package again from its source, or compress again.",
            )
    session = chosen.open_session(model, threads=threads, precision=deployed["precision"])
    return Package(folder, Pipeline.from_json(pipeline_file.read_text()), session, result)


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


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Staging:
    """`OUT.partial`: what is finished of a package, kept when the work is interrupted.

    Attributes:
        out: where the package will lie.
        work: checkpoints and finished cases, which do not become part of the package.
        package: the package as far as it is.
        resumed: whether an earlier run of the same task left something here.
    """

    def __init__(self, out: Path, task: Mapping[str, Any]) -> None:
        """Make the folders, or find those of the same task again; another task's are emptied.

        Raises:
            OutputError: the place is taken, read-only or full.
        """
        self.out = out
        folder = out.with_name(out.name + ".partial")
        self.work, self.package = folder / "work", folder / "package"
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} already exists.", "Choose another --out, or move it away.")
        key = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()
        with writing(folder):
            state = folder / STATE
            self.resumed = state.exists() and state.read_text() == key
            if not self.resumed:
                shutil.rmtree(folder, ignore_errors=True)
            for part in (self.work, self.package):
                part.mkdir(parents=True, exist_ok=True)
            state.write_text(key)

    def require(self, size: int) -> None:
        """Check that so many bytes are free: runtimes write truncated files on a full disk without a word.

        Raises:
            OSError: they are not (ENOSPC).
        """
        if shutil.disk_usage(self.package).free < size:
            raise OSError(errno.ENOSPC, "no space left on device", str(self.package))

    def finish(self) -> None:
        """Move the package to its place and drop the rest.

        Raises:
            OutputError: it cannot be moved.
        """
        with writing(self.out):
            if self.out.exists():
                self.out.rmdir()
            self.package.rename(self.out)
            shutil.rmtree(self.package.parent)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the operating system's errors about a place into one sentence.

    Raises:
        OutputError: read-only, full, or not writable for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"the disk of {place} is full.",
                "Free some space and run the same command again: it goes on from there.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise OutputError(f"{place} cannot be written ({error.strerror}).", "Choose another --out.") from error
        raise OutputError(
            f"{error.filename or place}: {error.strerror or error}.", "Check the place, and run the same command again."
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; NaN becomes null."""
    path.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
