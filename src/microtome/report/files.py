"""Reading what a package folder holds, and writing text files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import OutputError, ReadError
from microtome.types import Array

SCHEMA = 1
OBJECTS = (
    "parent",
    "compressed",
    "input",
    "difference",
    "agreement",
    "verdict",
    "operating_point",
    "integer",
    "counts",
    "subgroups",
    "memory",
    "seconds",
    "environment",
    "sensitivity",
    "training",
    "structure",
    "targets",
    "failed_targets",
)
TABLES = (
    "runs",
    "layers",
    "cases",
    "examples",
    "quantizers",
    "pareto",
    "trials",
    "placement",
    "trajectory",
    "search",
    "rungs",
)
LISTS = ("classes", "warnings", "notes")
REQUIRED = ("parent", "compressed")
PANELS = ("image", "reference", "parent", "compressed")
HINT = "Point to a package folder that `microtome compress` or `microtome evaluate` wrote, or write it again."

Result = dict[str, Any]
Examples = Mapping[str, Mapping[str, Array]]


def read_json(path: Path) -> Any:
    """Parse one JSON file. Raises ReadError when it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReadError(f"{path} does not exist.", HINT) from error
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.", HINT) from error
    except (ValueError, RecursionError) as error:
        raise ReadError(f"{path} is not valid JSON: {error}.", HINT) from error


def read_result(folder: Path) -> Result:
    """Read and check `result.json` of a package folder.

    Optional fields that are missing or null come back empty ({} or []), so that callers need no further checks at
    the top level. Raises ReadError when the file is missing, is not JSON, has another schema, or a field has the
    wrong shape.
    """
    path = Path(folder) / "result.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ReadError(f"{path} holds no JSON object.", HINT)
    if raw.get("schema") != SCHEMA or isinstance(raw.get("schema"), bool):
        found = json.dumps(raw.get("schema"))[:40]
        raise ReadError(f"{path} has schema {found}; this version reads schema {SCHEMA}.", HINT)
    if not isinstance(raw.get("task"), str):
        raise ReadError(f"{path}: `task` must be the name of a task.", HINT)
    result = dict(raw)
    for name in (*OBJECTS, *TABLES, *LISTS):
        result[name] = _field(path, name, raw.get(name))
    return result


def _field(path: Path, name: str, value: Any) -> Any:
    """The value of one field, empty when null; ReadError when it has another shape than the schema says."""
    if value is None and name not in REQUIRED:
        return {} if name in OBJECTS else []
    if name in OBJECTS and not isinstance(value, dict):
        raise ReadError(f"{path}: `{name}` must be a JSON object.", HINT)
    if name not in OBJECTS and not isinstance(value, list):
        raise ReadError(f"{path}: `{name}` must be a JSON list.", HINT)
    if name in TABLES and not all(isinstance(row, dict) for row in value):
        raise ReadError(f"{path}: every entry of `{name}` must be a JSON object.", HINT)
    return value


def read_examples(folder: Path, cases: list[str]) -> Examples:
    """Read the arrays of the named example cases from `examples.npz`; empty when there is no such file.

    Returns case → panel → array: `image` (H, W) or (H, W, 3), the others (H, W): label maps, or images of real numbers.
    Raises ReadError when the file is truncated, an array has another number of axes, or one does not fit its image.
    """
    path = Path(folder) / "examples.npz"
    if not path.exists():
        return {}
    found: dict[str, dict[str, Array]] = {}
    try:
        with path.open("rb") as stream:
            archive: Any = np.load(stream, allow_pickle=False)
            names: set[str] = set(archive.files)
            for case in cases:
                keys = [panel for panel in PANELS if f"{case}/{panel}" in names]
                found[case] = {panel: np.asarray(archive[f"{case}/{panel}"]) for panel in keys}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ReadError(f"{path} cannot be read: {error}.", "Write the package again.") from error
    except AttributeError as error:  # a bare .npy array under this name has no `files`
        raise ReadError(f"{path} is not an npz archive.", "Write the package again.") from error
    for case, panels in found.items():
        _check_panels(path, case, panels)
    return found


def _check_panels(path: Path, case: str, panels: Mapping[str, Array]) -> None:
    image = panels.get("image")
    for panel, array in panels.items():
        colour = panel == "image" and array.ndim == 3 and array.shape[2] == 3
        if (array.ndim != 2 and not colour) or array.size == 0 or array.dtype.kind not in "buif":
            raise ReadError(f"{path}: {case}/{panel} has shape {array.shape}, not (H, W).", "Write the package again.")
        if image is not None and array.shape[:2] != image.shape[:2]:
            problem = f"{path}: {case}/{panel} has shape {array.shape}, but its image has {image.shape[:2]}."
            raise ReadError(problem, "Write the package again.")


def write_text(path: Path, text: str) -> Path:
    """Write a text file so that it is there whole or not at all, and return its path. Raises OutputError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)  # noqa: PTH105  the atomic step, named as the standard library documents it
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        problem = f"{path} cannot be written: {error.strerror or error}."
        raise OutputError(problem, "Check that the folder exists, is writable and has room.") from error
    return path
