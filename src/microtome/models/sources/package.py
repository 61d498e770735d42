"""A package folder that `compress` wrote: its `network.pt2`, or the one in its coded file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from microtome.entropy.packages import CODED, coded_files, is_coded
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
    return any((folder / name).is_file() for name in ("result.json", "network.pt2", CODED))


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read the network and the pipeline."""
    folder = Path(str(source))
    if is_coded(folder):
        from microtome.graph.coded import together

        file = folder / CODED
        return pt2.load_file(file, wanted, folder.resolve().name, content=together(coded_files(folder), file))
    file = folder / "network.pt2"
    if not file.is_file():
        raise ReadError(f"The folder {folder} is a package without network.pt2.", f"Copy it whole: give {LOOKS_LIKE}.")
    return pt2.load_file(file, wanted, folder.resolve().name)
