"""Example cases for the report: which ones to look at, and their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from microtome.evidence.comparison import Pair
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.tasks import task
from microtome.tasks.base import predict_one
from microtome.types import Array, Case, Image

SHOWN = (0.5, 99.5)  # percentiles between which gray values are shown


def choose(parts: Mapping[str, Any], pipeline: Pipeline) -> list[dict[str, Any]]:
    """Choose the cases that a reader should look at, worst first: entries of `result.json`'s `examples`."""
    return task(pipeline.task).choose(parts["cases"])


def pictures(
    examples: Sequence[dict[str, Any]], pair: Pair, cohort: Cohort, pipeline: Pipeline
) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Return the examples with their slice, and the arrays of `examples.npz`."""
    cases = {case.id: case for case in cohort.evaluation}
    finished, arrays = [], {}
    for example in examples:
        case = cases[example["case"]]
        maps, position = _maps(case, pair, cohort, pipeline)
        arrays.update({f"{case.id}/{name}": array for name, array in maps.items()})
        finished.append({**example, "slice": position})
    return finished, arrays


def _maps(case: Case, pair: Pair, cohort: Cohort, pipeline: Pipeline) -> tuple[dict[str, Array], int | None]:
    image, kind = cohort.image(case), task(pipeline.task)
    found: dict[str, Array] = {}
    if kind.DRAWS:
        prepared = prepare(image, pipeline)
        sides = {"parent": pair.parent, "compressed": pair.compressed}
        drawn = {"reference": kind.drawn_reference(kind.reference(cohort, case, image), image, pipeline)}
        for name, side in sides.items():
            drawn[name] = kind.drawn(predict_one(kind, side, prepared, pipeline), image, pipeline)
        found = {name: array for name, array in drawn.items() if array is not None}
    position = _position(image, found)
    maps = {"image": _displayed(image, position)}
    planes = {name: _plane(array, position) for name, array in found.items()}
    for name, plane in planes.items():
        maps[name] = _as_image(plane, planes) if plane.dtype.kind == "f" else plane.astype(np.uint8)
    return maps, position


def _position(image: Image, found: Mapping[str, Array]) -> int | None:
    """Which slice of a volume to show: the one with most of the reference, or of what the parent found."""
    if len(image.spatial) == 2:
        return None
    maps = [found[name] for name in ("reference", "parent") if name in found and found[name].dtype.kind != "f"]
    shown = next((one for one in maps if one.any()), None)
    return image.spatial[-1] // 2 if shown is None else int((shown > 0).sum((0, 1)).argmax())


def _as_image(plane: Array, others: Mapping[str, Array]) -> Array:
    """Return a plane of an image that was made, float32 from 0 to 1; all of a case are scaled alike."""
    low, high = np.percentile(others.get("reference", others.get("parent", plane)), SHOWN)
    return np.asarray(((plane - low) / max(high - low, 1e-6)).clip(0, 1), np.float32)


def _plane(array: Array, position: int | None) -> Array:
    """Return a picture as it is; of a volume the plane, turned so that the second axis points up."""
    return array if position is None else np.ascontiguousarray(np.rot90(array[..., position]))


def _displayed(image: Image, position: int | None) -> Array:
    """Return the picture scaled to [0, 1]: (H, W), or (H, W, 3) for colour."""
    if position is not None or image.array.shape[0] != 3:
        plane = _plane(image.array[0], position).astype(np.float32)
    else:
        plane = np.moveaxis(image.array, 0, -1).astype(np.float32)
    low, high = np.percentile(plane, SHOWN)
    return np.asarray(((plane - low) / max(high - low, 1e-6)).clip(0, 1), np.float32)
