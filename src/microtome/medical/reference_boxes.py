"""Reference boxes of a case, in voxels of its image: brought there from millimetres, refused where they lie outside."""

from __future__ import annotations

import itertools

import numpy as np

from microtome.errors import GeometryError, LabelError
from microtome.types import Array, Boxes, Image

SLACK = 0.5  # voxels that a box may reach beyond its image: rounding of whoever drew it
LPS = np.array([-1.0, -1.0, 1.0])


def boxes_on(boxes: Boxes, image: Image, source: str) -> Array:
    """Reference boxes as rows (m, 1 + 2·d): class, lower corner, upper corner, in voxels of the image.

    Args:
        boxes: of a case.
        image: its image; the voxels are not looked at.
        source: what to call the image in an error.

    Raises:
        LabelError: a box has no extent, has another number of axes, or lies outside of the image.
        GeometryError: boxes in millimetres for an image that nobody says the place of.
    """
    d, size = len(image.spatial), np.array(image.spatial, float)
    rows = np.zeros((len(boxes.labels), 1 + 2 * d))
    for row, label, corners in zip(rows, boxes.labels, boxes.corners, strict=True):
        if len(corners) != 2 * d:
            raise LabelError(
                f"{source} has a box of {len(corners)} numbers, and {d} axes.", f"Boxes of it have {2 * d} numbers."
            )
        low, high = np.array(corners[:d]), np.array(corners[d:])
        if boxes.frame != "voxel":
            low, high = _in_voxels(low, high, boxes.frame, image)
        if not (low < high).all():
            raise LabelError(
                f"{source} has a box without extent: it goes from {_text(low)} to {_text(high)}.", "Correct the box."
            )
        if (low < -SLACK).any() or (high > size + SLACK).any():
            raise LabelError(
                f"{source} has a box outside of the image: it goes from {_text(low)} to {_text(high)} in voxels, and "
                f"the image has {_text(size)}.",
                "Correct the box, or say in which coordinates boxes are.",
            )
        row[:] = [label, *np.clip(low, 0, size), *np.clip(high, 0, size)]
    return rows


def _in_voxels(low: Array, high: Array, frame: str, image: Image) -> tuple[Array, Array]:
    """The box around a box in millimetres, in voxels; whose centres are whole numbers in an affine."""
    if image.affine is None or len(low) != 3:
        raise GeometryError(
            "A box is in millimetres, but its image does not say where it lies.", "Give boxes in voxels."
        )
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    if frame == "lps":
        corners = corners * LPS
    places = np.linalg.solve(image.affine[:3, :3], (corners - image.affine[:3, 3]).T).T + 0.5
    return places.min(axis=0), places.max(axis=0)


def _text(values: Array) -> str:
    return f"({', '.join(f'{value:g}' for value in np.round(values, 1))})"
