"""Headers whose voxels lie in other files: Analyze and NIfTI pairs, NRRD and MetaImage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from microtome.medical.readers.kind import suffix_of

HEADER = 65536  # bytes in which a header of text names its files
NAMED = {
    ".nhdr": re.compile(r"^data ?file:[ \t]*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE),
    ".mhd": re.compile(r"^\s*ElementDataFile[ \t]*=[ \t]*(\S.*?)\s*$", re.MULTILINE),
}


def voxel_files(header: Path) -> list[Path]:
    """The files that exist and hold a header's voxels; none for files that hold their own."""
    suffix = suffix_of(header)
    if suffix == ".hdr":
        return [path for path in (header.with_suffix(".img"), header.with_suffix(".img.gz")) if path.is_file()]
    if suffix not in NAMED:
        return []
    try:
        with header.open("rb") as stream:
            text = stream.read(HEADER).decode("utf-8", "replace")
        return [header.parent / name for name in _names(text, suffix, header) if (header.parent / name).is_file()]
    except (OSError, ValueError):  # not readable, or what stands there is no name
        return []


def _names(text: str, suffix: str, header: Path) -> list[str]:
    """One name, a list of names on the lines that follow, or those of a pattern such as `slice%03d.raw 1 20 1`."""
    found = NAMED[suffix].search(text)
    if found is None:
        return []
    name = found.group(1)
    if name.split()[0].upper() == "LIST":
        return [line.strip() for line in text[found.end() :].splitlines() if line.strip()]
    if "%" in name:
        pattern = re.compile(re.sub(r"%\d*d", r"\\d+", re.escape(name.split()[0]).replace("\\%", "%")))
        return sorted(path.name for path in header.parent.iterdir() if pattern.fullmatch(path.name))
    return [name]


def without_voxel_files(paths: Iterable[Path]) -> list[Path]:
    """Files of a folder without those that belong to a header among them."""
    every = list(paths)
    taken = {voxels for path in every for voxels in voxel_files(path)}
    return [path for path in every if path not in taken]
