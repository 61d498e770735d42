"""nnU-Net's labels for regions that overlap: `"whole": [1, 2, 3], "core": [2, 3]` and `regions_class_order`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.errors import DataError
from microtome.medical.formats.dataset_json import label_names, read_json
from microtome.medical.formats.table import Table

BACKGROUND, IGNORED = "background", "ignore"
Regions = Mapping[str, tuple[int, ...]]


def with_labels(table: Table, named: Path) -> Table:
    """Return a table with the classes, and the regions if there are any, that a dataset.json names.

    Raises:
        DataError: labels that are not numbered from 0, or regions or their order that make no sense.
    """
    regions, order = label_regions(named)
    if order is None:
        names = label_names(named)
        return replace(table, classes=names.classes, unnamed=names.unnamed)
    classes, unnamed = _classes(regions, order)
    return replace(table, classes=classes, unnamed=unnamed, regions=regions, regions_order=order)


def labels_beside(table: Table, folder: Path) -> Table:
    """Return a table with what a dataset.json in a folder names, if there is one. Raises as `with_labels`."""
    file = folder / "dataset.json"
    return with_labels(table, file) if file.is_file() else table


def label_regions(path: Path) -> tuple[Regions, tuple[int, ...] | None]:
    """Regions of a dataset.json, in the order of the network's channels, and the label that each is written as.

    Returns:
        None for the order where no region is declared: then nothing overlaps.

    Raises:
        DataError: labels or the order make no sense.
    """
    content = read_json(path)
    labels, order = content.get("labels"), content.get("regions_class_order")
    if order is None or not isinstance(labels, dict) or not any(isinstance(value, list) for value in labels.values()):
        return {}, None
    kept = {name: value for name, value in labels.items() if name.lower() not in (BACKGROUND, IGNORED)}
    regions = {str(name): _numbers(path, name, value) for name, value in kept.items()}
    right = isinstance(order, list) and len(order) == len(regions) and all(isinstance(label, int) for label in order)
    if not right or not all(label in numbers for label, numbers in zip(order, regions.values(), strict=True)):
        raise DataError(
            f"{path}: regions_class_order is {order}, which is not one label of each of {', '.join(regions)}.",
            "Give the label that each region is written as, in the order of the regions.",
        )
    return regions, tuple(order)


def _classes(regions: Regions, order: tuple[int, ...]) -> tuple[tuple[str, ...], frozenset[int]]:
    """Names of the label numbers, the background first: that of the region which is written as this label; those
    that nobody named.
    """
    names = {0: BACKGROUND} | dict(zip(order, regions, strict=True))
    top = max(label for numbers in regions.values() for label in numbers)
    everyone = range(top + 1)
    named = tuple(names.get(label, f"label {label}") for label in everyone)
    return named, frozenset(label for label in everyone if label not in names)


def _numbers(path: Path, name: str, value: Any) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise DataError(
            f"{path}: the labels of the region {name!r} are {value}.", "Give one or several label numbers above 0."
        )
    return tuple(dict.fromkeys(numbers))
