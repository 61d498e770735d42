"""Example cases for the report: which ones to look at, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from microtome.evidence.comparison import Pair, label_map
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.types import Array, Case, Image

WORST = 3


def choose(parts: dict[str, Any], task: str, metric: str = "dice") -> list[dict[str, Any]]:
    """Choose the cases that lost most, the compressed network's lowest score, a typical case and the best.

    Args:
        parts: what `evaluate_pair` returned.
        task: `segmentation` or `classification`.
        metric: of segmentation, by which cases are ordered.

    Returns:
        Entries of `result.json`'s `examples`, each case once, worst first.
    """
    rows = parts["cases"]
    if task == "segmentation":
        scored = [r for r in rows if r["parent"].get(metric) is not None and r["compressed"].get(metric) is not None]
        if not scored:
            ordered = sorted(rows, key=lambda r: r["agreement"])
            return _unique([("worst", r, f"{r['agreement']:.2%} of voxels as the parent") for r in ordered[:WORST]])
        lost = sorted(scored, key=lambda r: r["compressed"][metric] - r["parent"][metric])
        level = sorted(scored, key=lambda r: r["compressed"][metric])
        chosen = [("worst", r) for r in [*lost[:WORST], level[0]]]
        chosen += [("typical", level[len(level) // 2]), ("best", level[-1])]
        return _unique(
            [(k, r, f"{metric.title()} {r['parent'][metric]:.3f} → {r['compressed'][metric]:.3f}") for k, r in chosen]
        )
    moved = sorted(rows, key=lambda r: -abs(r["compressed"]["score"][-1] - r["parent"]["score"][-1]))
    chosen = [("worst", r) for r in moved[:WORST]] + [("typical", moved[len(moved) // 2]), ("best", moved[-1])]
    return _unique(
        [(k, r, f"score {r['parent']['score'][-1]:.3f} → {r['compressed']['score'][-1]:.3f}") for k, r in chosen]
    )


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
    image = cohort.image(case)
    if pipeline.task == "classification":
        position = None if image.affine is None and image.array.ndim == 3 else image.spatial[-1] // 2
        return {"image": _displayed(image, position)}, position
    parent = label_map(pair.parent, cohort, case, pipeline)
    compressed = label_map(pair.compressed, cohort, case, pipeline)
    reference = cohort.mask(case, image)
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


def _unique(chosen: list[tuple[str, dict[str, Any], str]]) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, Any]] = {}
    for kind, row, text in chosen:
        seen.setdefault(row["case"], {"case": row["case"], "kind": kind, "text": text, "slice": None})
    return list(seen.values())
