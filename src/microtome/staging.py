"""`OUT.partial`: a folder is written beside its place, and moved there when it is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import OutputError
from microtome.files import writing

STATE = "state.json"


@dataclass(frozen=True)
class Place:
    """Where one part of the work is done.

    Attributes:
        work: checkpoints and finished cases, which do not become part of the package.
        package: what does.
    """

    work: Path
    package: Path


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

    def part(self, work: str, package: Path) -> Place:
        """Make room for a part of the work: a folder for its checkpoints, and a folder of the package."""
        place = Place(self.work / work, self.package / package)
        for folder in (place.work, place.package):
            folder.mkdir(parents=True, exist_ok=True)
        return place

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
