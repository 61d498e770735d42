"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net, versions 1 and 2: names, channels, lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import DataError, ReadError
from microtome.medical.formats.table import MANY_CLASSES
from microtome.medical.readers.kind import stem_of

AGAIN = "Copy the file again from its source."
WANTED = 'Wanted: "labels": {"0": "background", "1": …}.'


@dataclass(frozen=True)
class Names:
    """Class names in the order of their numbers; those of `unnamed` fill gaps between the numbers."""

    classes: tuple[str, ...] = ()
    unnamed: frozenset[int] = frozenset()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ReadError: missing, or not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{path} cannot be read as JSON.", AGAIN) from error
    if not isinstance(found, dict):
        raise ReadError(f"{path} is not a JSON object.", AGAIN)
    return found


def label_names(path: Path) -> Names:
    """Class names: `{"0": "background"}` (Decathlon), `{"background": 0}` (nnU-Net), or a list in their order.

    Raises:
        ReadError: not a JSON object.
        DataError: labels that are not numbered from 0.
    """
    labels = read_json(path).get("labels")
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        labels = {str(k): name for k, name in enumerate(labels)}
    if not isinstance(labels, dict) or not labels:
        raise DataError(f"{path} names no labels.", WANTED)
    names = _by_number(path, labels)
    if 0 not in names or len(names) < 2:
        raise DataError(f"{path} must number its labels from 0, the background.", "Correct the labels.")
    if max(names) >= MANY_CLASSES:
        raise DataError(f"{path} has the label {max(names)}, which is no class number.", "Number the labels from 0.")
    everyone = range(max(names) + 1)
    return Names(tuple(names.get(k, f"label {k}") for k in everyone), frozenset(k for k in everyone if k not in names))


def names_beside(folder: Path) -> Names:
    """The class names of a dataset.json in a folder; none where there is no such file. Raises as `label_names`."""
    file = folder / "dataset.json"
    return label_names(file) if file.is_file() else Names()


def _by_number(path: Path, labels: Mapping[str, Any]) -> dict[int, str]:
    if all(_whole(key) is not None for key in labels):
        pairs = [(_whole(key), name) for key, name in labels.items()]
    else:
        pairs = [(_whole(number), name) for name, number in labels.items()]
    names: dict[int, str] = {}
    for number, name in pairs:
        if number is None:
            raise DataError(f"{path} has labels that are not single numbers.", f"Regions are not read. {WANTED}")
        if not isinstance(name, str) or number in names:
            raise DataError(f"{path} names the label {number} twice, or not by a text.", WANTED)
        names[number] = name
    return names


def _whole(value: Any) -> int | None:
    """A number from 0 that is written as one, in digits or as text of digits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def channels(path: Path) -> int | None:
    """How many channels an image has, by `channel_names` (nnU-Net 2) or `modality` (1); None where neither says it.

    Raises:
        ReadError: not a JSON object.
    """
    content = read_json(path)
    named = content.get("channel_names", content.get("modality"))
    if isinstance(named, str):
        return 1
    return len(named) if isinstance(named, dict | list) and named else None


def listed_cases(content: Mapping[str, Any], key: str) -> frozenset[str]:
    """The names of the cases in a list: texts, or objects with `image` and `label`; names are those of the labels."""
    entries = content.get(key)
    names = []
    for entry in entries if isinstance(entries, list) else ():
        file = entry.get("label", entry.get("image")) if isinstance(entry, dict) else entry
        file = file[0] if isinstance(file, list) and file else file
        if isinstance(file, str):
            names.append(stem_of(Path(file.replace("\\", "/"))))
    return frozenset(names)
