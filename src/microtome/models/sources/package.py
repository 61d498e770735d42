"""A package folder that `compress` wrote: its `network.pt2`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import ReadError
from microtome.models.base import Loaded, Wanted
from microtome.models.sources import pt2

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "package"
LOOKS_LIKE = "a package folder that `compress` wrote"


def matches(source: Given) -> bool:
    """Whether it is a folder with a result or a network."""
    folder = Path(str(source))
    return any((folder / name).is_file() for name in ("result.json", "network.pt2"))


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read the network and the pipeline."""
    folder = Path(str(source))
    file = folder / "network.pt2"
    if not file.is_file():
        raise ReadError(f"The folder {folder} is a package without network.pt2.", f"Copy it whole: give {LOOKS_LIKE}.")
    return pt2.load_file(file, wanted, folder.resolve().name)
