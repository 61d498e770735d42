"""Headers whose voxels lie in other files: Analyze and NIfTI pairs, NRRD and MetaImage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from microtome.medical.readers.kind import suffix_of

HEADER = 65536  # bytes in which a header of text names its files
NAMED = {
    ".nhdr": re.compile(r"^data ?file:\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE),
    ".mhd": re.compile(r"^\s*ElementDataFile\s*=\s*(.+?)\s*$", re.MULTILINE),
}


def voxel_files(header: Path) -> list[Path]:
    """The files that exist and hold a header's voxels, in their order; none for files that hold their own.

    Where a header gives a list or a pattern of names, they are the other files of its folder with its stem.
    """
    suffix = suffix_of(header)
    if suffix == ".hdr":
        return [path for path in (header.with_suffix(".img"), header.with_suffix(".img.gz")) if path.is_file()]
    if suffix not in NAMED:
        return []
    try:
        with header.open("rb") as stream:
            found = NAMED[suffix].search(stream.read(HEADER).decode("utf-8", "replace"))
    except OSError:
        return []
    name = "" if found is None else found.group(1)
    try:
        if name and (header.parent / name).is_file():
            return [header.parent / name]
    except (OSError, ValueError):  # what stands there is no name
        return []
    stem = header.name[: -len(suffix)]
    return sorted(path for path in header.parent.iterdir() if path.name.startswith(stem) and path != header)


def without_voxel_files(paths: Iterable[Path]) -> list[Path]:
    """Files of a folder without those that belong to a header among them."""
    every = list(paths)
    taken = {voxels for path in every for voxels in voxel_files(path)}
    return [path for path in every if path not in taken]
