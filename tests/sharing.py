"""Folders that the processes of a test session share."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from filelock import FileLock

Once = Callable[[str, Callable[[Path], object]], Path]
"""The fixture `once`: a folder's name, and what fills the folder → the folder, filled once per session, to be read."""


def made_once(root: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `root/name`, filled by the first process that asks; the others wait for it.

    Args:
        root: that all processes share.
        name: of the folder.
        make: fills the empty folder that it is given. If it fails, the next to ask tries again.
    """
    folder, finished = root / name, root / f"{name}.finished"
    with FileLock(root / f"{name}.lock"):
        if not finished.exists():
            rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder
