"""Regions that overlap, such as a tumour, its core and what enhances in it: a mask each, and one label map of all.

While planes are put together, the masks of a voxel are the bits of one number: region k is bit k.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from microtome.medical.pipeline import Pipeline
from microtome.types import Array

WIDTHS = (8, 16, 32, 64)


def code_type(count: int) -> np.dtype:
    """The smallest unsigned type with a bit for each of so many regions."""
    return np.dtype(f"uint{next(width for width in WIDTHS if count <= width)}")


def codes(channels: Iterable[Array], threshold: float, dtype: np.dtype) -> Array:
    """The regions of each voxel as bits: those whose channel is above the threshold. Channels come one by one."""
    found: Array | None = None
    for bit, channel in enumerate(channels):
        inside = (channel > np.float32(threshold)).astype(dtype) << dtype.type(bit)
        found = inside if found is None else np.bitwise_or(found, inside, out=found)
    assert found is not None  # a network has channels
    return found


def masks_of_codes(found: Array, count: int) -> Array:
    """Codes of any shape S as bool (count, *S)."""
    masks = np.empty((count, *found.shape), np.bool_)
    for bit in range(count):
        np.not_equal(found & found.dtype.type(1 << bit), 0, out=masks[bit])
    return masks


def masks_of_labels(labels: Array, regions: Mapping[str, Sequence[int]]) -> Array:
    """A reference label map of any shape S as bool (regions, *S): where it holds one of a region's labels."""
    return np.stack([np.isin(labels, list(numbers)) for numbers in regions.values()])


def label_map(masks: Array, pipeline: Pipeline) -> Array:
    """Masks (K, *S) as one label map, written in the pipeline's order: later regions win where they overlap."""
    labels = np.zeros(masks.shape[1:], np.uint8 if len(pipeline.classes) <= 256 else np.uint16)
    for channel, label in pipeline.writing:
        labels[masks[channel]] = label
    return labels
