"""Surface distances in millimetres: NSD and HD95, in two or three dimensions.

The surface of a mask is its border voxels: voxels of the mask with at least one face neighbour (4 in 2-D, 6 in 3-D)
outside of it. Outside of the image counts as outside of the mask. A distance is the Euclidean one, in mm, from the
centre of a border voxel to the centre of the nearest border voxel of the other mask. Each border voxel counts once:
this is the voxel-based definition, not the one that weighs surface elements by their area.

Distances are exact. A k-d tree of the border voxels finds them; it equals a Euclidean distance transform, and costs by
the size of the surface instead of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial import KDTree

from microtome.clinical.empty import UNDEFINED, diagonal
from microtome.clinical.overlap import check_pair
from microtome.errors import GeometryError, OptionError
from microtome.types import Array

if TYPE_CHECKING:
    from microtome.clinical.masks import Masks

SLACK_MM = 1e-5  # Headers store spacing in float32: 0.1 mm is read as 0.100000001 and must lie within 0.1 mm.

Box = tuple[slice, ...]


class SurfaceDistances(NamedTuple):
    """Distances in mm: from each border voxel of the prediction to the reference, and the other way round."""

    to_reference: Array
    to_prediction: Array


def border(mask: Array) -> Array:
    """Border voxels of a boolean mask, as a boolean array of its shape (definition: see the module)."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis, size in enumerate(mask.shape):
        for start in (0, 2):
            shifted = [slice(1, -1)] * mask.ndim
            shifted[axis] = slice(start, start + size)
            inner &= padded[tuple(shifted)]
    return np.asarray(mask & ~inner)


def union_box(first: Box | None, second: Box | None) -> Box | None:
    """Smallest box around two boxes; None is an empty box."""
    if first is None or second is None:
        return first or second
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def surface_distances(prediction: Array, reference: Array, *, spacing: Sequence[float]) -> SurfaceDistances:
    """Distances between the borders of two boolean masks of one shape. Neither may be empty.

    Crop the masks to the box around both first: it changes nothing and saves time.

    Args:
        prediction: boolean mask, 2-D or 3-D.
        reference: boolean mask of the same shape.
        spacing: mm per voxel along each axis.
    """
    steps = np.asarray(spacing, float)
    ours, theirs = (np.argwhere(border(mask)) * steps for mask in (prediction, reference))
    to_reference, to_prediction = (
        KDTree(target, balanced_tree=False, compact_nodes=False).query(points)[0]
        for points, target in ((ours, theirs), (theirs, ours))
    )
    return SurfaceDistances(to_reference, to_prediction)


def nsd_from_distances(distances: SurfaceDistances, tolerance: float) -> float:
    """NSD of two masks that are not empty; see `nsd`."""
    within = sum(int(np.count_nonzero(side <= tolerance + SLACK_MM)) for side in distances)
    return within / sum(side.size for side in distances)


def hd95_from_distances(distances: SurfaceDistances) -> float:
    """HD95 in mm of two masks that are not empty; see `hd95`."""
    return max(float(np.percentile(side, 95)) for side in distances)


def nsd_of_masks(masks: Masks) -> float:
    """NSD of two masks that are not empty; see `nsd`."""
    return nsd_from_distances(masks.distances, masks.tolerance)


def hd95_of_masks(masks: Masks) -> float:
    """HD95 in mm of two masks that are not empty; see `hd95`."""
    return hd95_from_distances(masks.distances)


def nsd(
    prediction: Array, reference: Array, *, spacing: Sequence[float], tolerance: float = 1.0, label: int = 1
) -> float:
    """Normalised surface Dice of one label: the share of both borders that lies within `tolerance` mm of the other.

    (|{p ∈ ∂P: d(p, ∂R) ≤ τ}| + |{r ∈ ∂R: d(r, ∂P) ≤ τ}|) / (|∂P| + |∂R|): Nikolov et al., J Med Internet Res 2021;
    Reinke et al. and Maier-Hein et al. (Metrics Reloaded), Nature Methods 2024. On border voxels (see the module).
    Both empty: NaN. One empty: 0 (`microtome.clinical.empty`).

    Args:
        prediction: label map, 2-D or 3-D.
        reference: label map of the same shape.
        spacing: mm per voxel along each axis.
        tolerance: the largest distance in mm that counts as equal.
        label: the structure.

    Raises:
        GeometryError: the shapes differ, or spacing does not fit.
        LabelError: not a label map.
        OptionError: negative tolerance.
    """
    check_tolerance(tolerance)
    distances = _distances_of_label(prediction, reference, spacing, label)
    return distances if isinstance(distances, float) else nsd_from_distances(distances, tolerance)


def hd95(prediction: Array, reference: Array, *, spacing: Sequence[float], label: int = 1) -> float:
    """95th percentile of the Hausdorff distance of one label, in mm.

    The larger of the two directed 95th percentiles (linear interpolation) of the border distances: Huttenlocher et
    al., IEEE TPAMI 1993; Metrics Reloaded, Nature Methods 2024. Both empty: NaN. One empty: the image's diagonal in
    mm (`microtome.clinical.empty`).

    Args:
        prediction: label map, 2-D or 3-D.
        reference: label map of the same shape.
        spacing: mm per voxel along each axis.
        label: the structure.

    Raises:
        GeometryError: the shapes differ, or spacing does not fit.
        LabelError: not a label map.
    """
    distances = _distances_of_label(prediction, reference, spacing, label)
    if isinstance(distances, float):
        return UNDEFINED if np.isnan(distances) else diagonal(np.shape(reference), spacing)
    return hd95_from_distances(distances)


def check_spacing(shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Raise GeometryError unless `spacing` has one positive, finite number of mm for each axis."""
    if len(spacing) != len(shape) or not all(0 < step < np.inf for step in spacing):
        raise GeometryError(
            f"The spacing {tuple(spacing)} does not fit an image of shape {tuple(shape)}.",
            "Give one positive number of millimetres per axis.",
        )


def check_tolerance(tolerance: float) -> None:
    """Raise OptionError unless `tolerance` is a number of mm from 0."""
    if not 0 <= tolerance < np.inf:
        raise OptionError(f"The NSD tolerance is {tolerance} mm.", "Give a number of millimetres from 0.")


def _distances_of_label(
    prediction: Array, reference: Array, spacing: Sequence[float], label: int
) -> SurfaceDistances | float:
    """Distances between the borders of one label; NaN where both masks are empty, 0.0 where one is."""
    prediction, reference = check_pair(prediction, reference)
    check_spacing(reference.shape, spacing)
    ours, theirs = prediction == label, reference == label
    boxes = [find_objects(mask.view(np.uint8), 1)[0] if mask.any() else None for mask in (ours, theirs)]
    box = union_box(*boxes)
    if box is None:
        return UNDEFINED
    if None in boxes:
        return 0.0
    return surface_distances(ours[box], theirs[box], spacing=spacing)
