"""nnU-Net's files of single channels: `case_0000`, `case_0001` are one image, `case`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import PIL.Image

from microtome.errors import DataError
from microtome.medical.readers.kind import SUFFIXES, stem_of, suffix_of

GRAY = frozenset({"1", "L", "LA", "I", "F"})
CHANNEL = re.compile(r"(.+)_(\d{4})")


def by_case(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """The files that may be channels: name of the case → number of the channel → file.

    Raises:
        DataError: two files of one channel.
    """
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        match = CHANNEL.fullmatch(stem_of(file))
        if match is None:
            continue
        channels = found.setdefault(match.group(1), {})
        other = channels.setdefault(int(match.group(2)), file)
        if other is not file:
            raise DataError(f"{other} and {file.name} are the same channel of one image.", "Keep one of them.")
    return found


def is_gray(file: Path) -> bool:
    """Whether a file is no colour picture: one of these has all channels by itself."""
    if SUFFIXES.get(suffix_of(file)) != "picture":
        return True
    try:
        with PIL.Image.open(file) as opened:
            return opened.mode in GRAY or opened.mode.startswith("I;16")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return True  # is told when it is read


def complete(channels: dict[int, Path]) -> tuple[Path, ...] | None:
    """The files of all channels from 0, in order; None where one is missing."""
    return tuple(channels[k] for k in range(len(channels))) if set(channels) == set(range(len(channels))) else None
