"""Small random changes that leave the label of an image as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microtome.errors import OptionError
from microtome.types import Array


@dataclass(frozen=True)
class Augmentation:
    """How far an image is moved and changed at random, each time by a uniform share of these amounts, either way.

    Attributes:
        shift: of the size of each axis.
        scale: zoom, the same for all axes.
        contrast: factor of all values.
        brightness: offset, in standard deviations of the image's values.
        flips: spatial axes along which every second image is mirrored.

    Raises:
        OptionError: a negative amount, or one of 1 and more.
    """

    shift: float = 0.05
    scale: float = 0.1
    contrast: float = 0.1
    brightness: float = 0.1
    flips: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse amounts that leave nothing of an image."""
        amounts = (self.shift, self.scale, self.contrast, self.brightness)
        if not all(0 <= amount < 1 for amount in amounts):
            raise OptionError(f"amounts of augmentation must be at least 0 and below 1, not {amounts}.")


def augment(
    image: Array, labels: Array | None, how: Augmentation, rng: np.random.Generator
) -> tuple[Array, Array | None]:
    """Return a changed copy of an image and of its labels, of the same sizes.

    The image is resampled linearly and the labels by nearest neighbour, at the same places; what comes in from outside
    repeats the border. Zeros stay zeros where only intensities change: they are padding, or background that was
    removed.

    Args:
        image: float (C, *S).
        labels: integers (*S), or None.
        how: the amounts.
        rng: where randomness comes from; the same number of values is drawn for every image of the same dimension.

    Returns:
        Image float32 (C, *S), contiguous, and labels.
    """
    dims = image.ndim - 1
    zoom = 1 + how.scale * rng.uniform(-1, 1)
    shifts = how.shift * rng.uniform(-1, 1, dims)
    mirrored = rng.random(dims) < 0.5
    gain, offset = 1 + how.contrast * rng.uniform(-1, 1), how.brightness * rng.uniform(-1, 1)
    image = image.astype(np.float32)
    for axis in range(dims):
        flip = bool(mirrored[axis]) and axis in how.flips
        places = _places(image.shape[1 + axis], float(zoom), float(shifts[axis]), flip)
        image = _sample(image, places, 1 + axis)
        if labels is not None:
            labels = np.take(labels, np.rint(places).astype(np.intp), axis=axis)
    inside = image != 0
    if offset and inside.any():
        image += np.float32(offset * image[inside].std()) * inside
    image *= np.float32(gain)
    return np.ascontiguousarray(image), None if labels is None else np.ascontiguousarray(labels)


def _places(size: int, zoom: float, shift: float, flip: bool) -> Array:
    """Where along an axis the values come from, in voxels."""
    centre = (size - 1) / 2
    places = (np.arange(size) - centre) * zoom + centre + shift * size
    if flip:
        places = places[::-1]
    clipped: Array = np.clip(places, 0, size - 1)
    return clipped


def _sample(array: Array, places: Array, axis: int) -> Array:
    """Linear interpolation along one axis."""
    below = np.floor(places).astype(np.intp)
    share = (places - below).astype(np.float32)
    low: Array = np.take(array, below, axis=axis)
    if not share.any():
        return low
    share = share.reshape(-1, *[1] * (array.ndim - 1 - axis))
    high = np.take(array, np.minimum(below + 1, array.shape[axis] - 1), axis=axis)
    sampled: Array = low + (high - low) * share
    return sampled
