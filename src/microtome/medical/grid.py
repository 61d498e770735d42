"""Whether two images lie on one grid, and turning a mask's axes to those of its image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np

from microtome.errors import GeometryError
from microtome.types import Array, Image

GRID_TOLERANCE = 0.1  # voxels, at the corners: rounding in headers stays far below, half a voxel is a real shift
AS_IT_IS = ((0, 1), (1, 1), (2, 1))
Turn = tuple[tuple[int, int], ...]
"""For each axis where it goes, and 1 or -1 for its direction."""


def same_grid(one: Image, other: Image) -> bool:
    """Whether two images have the same shape and place; a picture has no place and fits anywhere."""
    if one.spatial != other.spatial:
        return False
    if one.affine is None or other.affine is None:
        return True
    return _near(one.affine, other.affine, one.spatial)


def on_grid(mask: Image, image: Image, path: Path) -> Image:
    """The mask on the image's grid, with its axes turned to the image's where they are only flipped or swapped.

    A NIfTI file may say in two ways where it lies, and programs that write masks take one or the other. So a mask
    fits if it fits by its affine, its qform or its sform; the same ones of both files are tried first.

    Raises:
        GeometryError: another shape or another place, or it fits in two ways that turn it differently.
    """
    if mask.affine is None or image.affine is None:
        _check_shape(mask, image, path)
        return mask
    for pairs in (_alike(mask, image), _crossed(mask, image)):
        turns = {turn for ours, theirs in pairs if (turn := _fits(mask, ours, image, theirs)) is not None}
        if len(turns) > 1:
            raise GeometryError(
                f"The qform and the sform of {path} or of its image contradict one another: the mask fits in two ways.",
                "Make both forms of the image the same, and those of the mask.",
            )
        if turns:
            return _turned(mask, turns.pop())
    turned = _turned(mask, _turn(mask.affine, image.affine) or AS_IT_IS)
    _check_shape(turned, image, path)
    assert turned.affine is not None
    raise GeometryError(
        f"{path} lies elsewhere than its image: their affines differ by "
        f"{_shift(turned.affine, image.affine, image.spatial):.2f} mm.",
        "Mask and image must have the same grid.",
    )


def _check_shape(mask: Image, image: Image, path: Path) -> None:
    if mask.spatial != image.spatial:
        raise GeometryError(
            f"{path} has the shape {size_text(mask.spatial)}, its image {size_text(image.spatial)}.",
            "Mask and image must have the same grid.",
        )


def _affines(image: Image) -> list[Array | None]:
    """The affine, the qform and the sform."""
    return [image.affine, *((image.forms.qform, image.forms.sform) if image.forms else (None, None))]


def _alike(one: Image, other: Image) -> Iterator[tuple[Array, Array]]:
    for ours, theirs in zip(_affines(one), _affines(other), strict=True):
        if ours is not None and theirs is not None:
            yield ours, theirs


def _crossed(one: Image, other: Image) -> Iterator[tuple[Array, Array]]:
    for ours, theirs in itertools.product(_affines(one), _affines(other)):
        if ours is not None and theirs is not None:
            yield ours, theirs


def _fits(mask: Image, ours: Array, image: Image, theirs: Array) -> Turn | None:
    """How the mask has to be turned to lie on the image; None if it does not."""
    turn = _turn(ours, theirs)
    if turn is None:
        return None
    turned = _turned(Image(mask.array, ours), turn)
    assert turned.affine is not None
    return turn if turned.spatial == image.spatial and _near(turned.affine, theirs, image.spatial) else None


def _turn(ours: Array, theirs: Array) -> Turn | None:
    """The turn that brings axes into the other's order and direction; None where an axis has none."""
    start, end = nibabel.io_orientation(ours), nibabel.io_orientation(theirs)
    if np.isnan(start).any() or np.isnan(end).any():
        return None
    found = nibabel.orientations.ornt_transform(start, end)
    return tuple((int(axis), int(direction)) for axis, direction in found)


def _turned(mask: Image, turn: Turn) -> Image:
    if turn == AS_IT_IS:
        return mask
    ornt = np.array(turn, float)
    affine = mask.affine @ nibabel.orientations.inv_ornt_aff(ornt, mask.spatial)
    return replace(mask, array=nibabel.orientations.apply_orientation(mask.array[0], ornt)[None], affine=affine)


def _near(one: Array, other: Array, spatial: tuple[int, ...]) -> bool:
    return _shift(one, other, spatial) <= GRID_TOLERANCE * float(np.linalg.norm(other[:3, :3], axis=0).min())


def _shift(one: Array, other: Array, spatial: tuple[int, ...]) -> float:
    """The largest distance in mm between the same corners of two grids."""
    top = np.array(spatial) - 1.0
    corners = np.array([[*(top * bits), 1.0] for bits in np.ndindex(2, 2, 2)])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def size_text(shape: tuple[int, ...]) -> str:
    """Such as `5×6×7`."""
    return "×".join(str(n) for n in shape)
