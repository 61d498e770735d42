"""Hashing and writing of files, and errors of the operating system in one sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import OutputError


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
