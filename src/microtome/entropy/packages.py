"""A package's coded file: what lies in it under which name."""

from __future__ import annotations

from pathlib import Path

from microtome.entropy.container import read
from microtome.errors import ReadError

CODED = "model.coded"


def is_coded(folder: Path) -> bool:
    """Whether a package's model files are in one coded file."""
    return (folder / CODED).is_file()


def coded_files(folder: Path) -> dict[str, bytes]:
    """Return the files in a package's coded file, by their place in the folder; none if it has no such file.

    Raises:
        ReadError: it is truncated or damaged, or cannot be read.
    """
    if not is_coded(folder):
        return {}
    path = folder / CODED
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror}).", "Copy it again.") from error
    return read(content, str(path))
