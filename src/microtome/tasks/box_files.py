"""Boxes as rows of a table, and as COCO's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from microtome.medical.pipeline import Pipeline
from microtome.types import Array

PICTURES = ("x_min", "y_min", "x_max", "y_max")
VOLUMES = ("i_min", "j_min", "k_min", "i_max", "j_max", "k_max")


def columns_of(pipeline: Pipeline) -> tuple[str, ...]:
    """The columns of a row: class, score, decision, and the box in voxels of the image; x runs along the columns."""
    return ("class", "score", "decision", *(PICTURES if pipeline.spatial_dims == 2 else VOLUMES))


def rows_of(found: Array, pipeline: Pipeline, limits: Sequence[float]) -> list[dict[str, str]]:
    """Boxes (n, 2 + 2·d) as rows; the decision is 1 at or above the operating point of the class."""
    rows = []
    for row in found:
        label, score = int(row[0]), float(row[1])
        corners = row[[3, 2, 5, 4]] if pipeline.spatial_dims == 2 else row[2:]
        cells = [pipeline.classes[label], f"{score:.9g}", str(int(score >= limits[label]))]
        cells += [f"{value:.6g}" for value in corners]
        rows.append(dict(zip(columns_of(pipeline), cells, strict=True)))
    return rows


def coco(rows: Sequence[Mapping[str, str]], names: Sequence[str], pipeline: Pipeline) -> dict[str, Any]:
    """COCO's form: images, categories, and annotations with a score; boxes are corner and size, of volumes six numbers.

    Args:
        rows: of the table, with the `name` of each image.
        names: of all images, also of those without a box.
        pipeline: names the classes.
    """
    numbers = {name: k + 1 for k, name in enumerate(names)}
    categories = {name: k + 1 for k, name in enumerate(pipeline.classes)}
    corners = columns_of(pipeline)[3:]
    d = len(corners) // 2
    annotations = []
    for k, row in enumerate(rows):
        low, high = ([float(row[name]) for name in side] for side in (corners[:d], corners[d:]))
        sides = [after - before for before, after in zip(low, high, strict=True)]
        annotations.append(
            {
                "id": k + 1,
                "image_id": numbers[row["name"]],
                "category_id": categories[row["class"]],
                "bbox": [round(value, 4) for value in (*low, *sides)],
                "score": float(row["score"]),
            }
        )
    return {
        "images": [{"id": k, "file_name": name} for name, k in numbers.items()],
        "categories": [{"id": k, "name": name} for name, k in categories.items()],
        "annotations": annotations,
    }
