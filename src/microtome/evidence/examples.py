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
    if not kind.MAPS:
        position = None if image.affine is None and image.array.ndim == 3 else image.spatial[-1] // 2
        return {"image": _displayed(image, position)}, position
    prepared = prepare(image, pipeline)
    parent, compressed = (
        kind.label_map(predict_one(kind, side, prepared, pipeline), pipeline) for side in (pair.parent, pair.compressed)
    )
    reference = kind.reference(cohort, case, image)
    position = None
    if parent.ndim == 3:
        shown = reference if reference is not None and reference.any() else parent
        position = int((shown > 0).sum((0, 1)).argmax())
    maps = {"image": _displayed(image, position)}
    for name, array in (("reference", reference), ("parent", parent), ("compressed", compressed)):
        if array is not None:
            maps[name] = _plane(array, position).astype(np.uint8)
    return maps, position


def _plane(array: Array, position: int | None) -> Array:
    """Return a picture as it is; of a volume the plane, turned so that the second axis points up."""
    return array if position is None else np.ascontiguousarray(np.rot90(array[..., position]))


def _displayed(image: Image, position: int | None) -> Array:
    """Return the picture scaled to [0, 1]: (H, W), or (H, W, 3) for colour."""
    if position is not None or image.array.shape[0] != 3:
        plane = _plane(image.array[0], position).astype(np.float32)
    else:
        plane = np.moveaxis(image.array, 0, -1).astype(np.float32)
    low, high = np.percentile(plane, (0.5, 99.5))
    return np.asarray(((plane - low) / max(high - low, 1e-6)).clip(0, 1), np.float32)
