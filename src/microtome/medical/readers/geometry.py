"""Where DICOM slices lie in the patient: order, spacing and affine (PS3.3, C.7.6.2, Image Plane module)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microtome.errors import GeometryError
from microtome.types import Array

SAME_PLACE = 0.01  # mm: positions are written with about 0.001 mm, and no scanner places two slices this close
CLOSE = 0.1  # pixels, where that is less: micro-CT has slices of 0.005 mm
UNEVEN = 0.1  # share of the slice distance: rounding and table feed stay well below, a missing slice is 1.0
SAME_DIRECTION = 1e-3  # direction cosines: files round them to 4 to 6 digits
SIDEWAYS = 0.5  # pixels: a slice shifted further within its plane does not lie in the stack
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """One slice: `position` (3,) of its first pixel and `orientation` (6,) in LPS mm, `spacing` (rows, columns) mm."""

    position: Array
    orientation: Array
    spacing: Array


def stack(planes: list[Plane], source: Path) -> tuple[list[int], Array]:
    """Sort slices along their common normal.

    Args:
        planes: one per slice, in any order; at least two.
        source: file or folder to name in errors.

    Returns:
        The order of the slices, and the affine (4, 4) from (column, row, slice) to RAS+ mm: pixels have to be
        transposed to (columns, rows) for it.

    Raises:
        GeometryError: different directions or spacings, two slices at one place, a missing slice, or a shifted one.
    """
    first = planes[0]
    for plane in planes:
        if not np.allclose(plane.orientation, first.orientation, rtol=0, atol=SAME_DIRECTION):
            raise GeometryError(f"{source} holds slices of different directions.", "Give each series its own folder.")
        if not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise GeometryError(f"{source} holds slices of different pixel sizes.", "Give each series its own folder.")
    along, down = first.orientation[:3], first.orientation[3:]
    normal = np.cross(along, down)
    if not 0.99 < np.linalg.norm(normal) < 1.01 or not (first.spacing > 0).all():
        raise GeometryError(f"{source} has an orientation or pixel size that makes no sense.", "Export it again.")
    positions = np.stack([plane.position for plane in planes])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    _check_steps(heights[order], min(SAME_PLACE, CLOSE * first.spacing.min()), source)
    positions = positions[order]
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    _check_line(positions, step, normal, first.spacing.min(), source)
    affine = np.eye(4)
    affine[:3, 0] = along * first.spacing[1]
    affine[:3, 1] = down * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return [int(k) for k in order], LPS_TO_RAS @ affine


def _check_steps(heights: Array, nearest: float, source: Path) -> None:
    gaps = np.diff(heights)
    at = int(gaps.argmin())
    if gaps[at] < nearest:
        raise GeometryError(
            f"{source} has two slices at one place, {heights[at]:.2f} mm along the stack.",
            "Keep one acquisition (phase, echo, b-value) per series, and each slice once.",
        )
    usual = np.sort(gaps)[(len(gaps) - 1) // 2]  # of two different gaps the smaller one
    at = int(np.abs(gaps - usual).argmax())
    if abs(gaps[at] - usual) > UNEVEN * usual:
        lost = gaps[at] > usual
        what = "misses a slice" if lost else "is unevenly spaced"
        raise GeometryError(
            f"{source} {what}: there are {gaps[at]:.2f} mm between slices "
            f"{at + 1} and {at + 2} of {len(heights)} ({heights[at]:.2f} and {heights[at + 1]:.2f} mm along the "
            f"stack), elsewhere {usual:.2f} mm.",
            "Fetch the series again." if lost else "Resample it to even spacing first.",
        )


def _check_line(positions: Array, step: Array, normal: Array, pixel: float, source: Path) -> None:
    """The slices' corners must lie on one straight line; it may be slanted, as with a tilted gantry."""
    straight = positions[0] + np.arange(len(positions))[:, None] * step
    off = positions - straight
    sideways = np.linalg.norm(off - (off @ normal)[:, None] * normal, axis=1)
    if sideways.max() > SIDEWAYS * pixel:
        raise GeometryError(
            f"{source} has slices that are shifted sideways, by up to {sideways.max():.2f} mm.",
            "Give each series its own folder.",
        )
