"""By what an image is known again: a hash of its voxels, and how it looks from afar."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import nibabel
import numpy as np
import PIL.Image

from microtome.types import Array, Image

# Side of the coarse pictures: fine enough to tell patients apart, coarse enough for other sizes and encodings.
SIDE = 16
SIDE_OF_MEANS = 10  # of a volume, along its axes
MANY = 16  # planes that are hashed at a time

# Correlation of two looks from which on they are taken for one image. Measured on chest X-rays and skin lesions, JPEG
# at quality 30, a third to twice the size, contrast and gamma stay above 0.985; the most alike of 600 different images
# reach 0.93. MR volumes of half to 1.3 times the size stay above 0.99; the most alike of 100 different ones reach 0.80.
ALIKE = 0.98


@dataclass(frozen=True)
class Fingerprint:
    """What two copies of an image have in common.

    Attributes:
        voxels: SHA-256 of size and values, the same for any encoding without loss, integer type, or order of axes.
        look: int8 (K,), the coarse structure, the same but for noise in copies of another size or with losses; None
            where an image has none.
    """

    voxels: str
    look: Array | None


def fingerprint(image: Image) -> Fingerprint:
    """Hash an image, and look at it from afar."""
    array = _canonical(image)
    return Fingerprint(_hash(array), _look(array))


def alike(looks: Array, others: Array) -> Array:
    """Correlations (N, M) of two sets of looks (N, K) and (M, K)."""
    one, other = (_unit(array.astype(np.float32)) for array in (looks, others))
    found: Array = one @ other.T
    return found


def _canonical(image: Image) -> Array:
    """The voxels with axes as near to RAS as they can be turned; three channels that are the same are one."""
    array = image.array
    if image.affine is not None and array.ndim == 4:
        turn = nibabel.orientations.io_orientation(image.affine)
        if not np.isnan(turn).any():
            array = np.stack([nibabel.orientations.apply_orientation(channel, turn) for channel in array])
    if array.shape[0] == 3 and np.array_equal(array[0], array[1]) and np.array_equal(array[0], array[2]):
        array = array[:1]
    return array


def _hash(array: Array) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    for channel in array:
        for first in range(0, len(channel), MANY):
            digest.update(np.ascontiguousarray(channel[first : first + MANY], "<f8").tobytes())
    return digest.hexdigest()


def _look(array: Array) -> Array | None:
    """Coarse pictures of the mean channel: of a volume, its means along each axis."""
    mean = array.mean(axis=0, dtype=np.float32)
    views = [mean] if mean.ndim == 2 else [mean.mean(axis=axis) for axis in range(mean.ndim)]
    if any(view.ndim != 2 for view in views):
        return None
    coarse = [_coarse(view, SIDE if len(views) == 1 else SIDE_OF_MEANS) for view in views]
    if not all(view.any() for view in coarse):
        return None
    found = np.concatenate(coarse)
    look: Array = np.rint(127 * found / np.abs(found).max()).astype(np.int8)
    return look


def _coarse(view: Array, side: int) -> Array:
    """A picture at side × side without what is coarser still, of length 1; all zero where nothing is left."""
    size = (side + 2, side + 2)
    small = np.asarray(PIL.Image.fromarray(view.astype(np.float32)).resize(size, PIL.Image.Resampling.BILINEAR))
    around = np.lib.stride_tricks.sliding_window_view(small, (3, 3)).mean(axis=(2, 3), dtype=np.float64)
    fine = (small[1:-1, 1:-1] - around).ravel()
    fine -= fine.mean()
    length = float(np.linalg.norm(fine))
    nothing = not length > 1e-6 * float(np.abs(small).max()) * side
    unit: Array = fine * 0 if nothing else fine / length
    return unit


def _unit(array: Array) -> Array:
    length = np.linalg.norm(array, axis=1, keepdims=True)
    unit: Array = array / np.maximum(length, 1e-12)
    return unit
