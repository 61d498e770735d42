"""What is done to a label map at the end: components that are too many or too small, and holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from microtome.errors import OptionError
from microtome.types import Array


@dataclass(frozen=True)
class Cleanup:
    """One step of it.

    Attributes:
        step: `keep_largest` keeps the largest connected component; `remove_small` removes components of less than
            `voxels`; `fill_holes` gives what a structure encloses on all sides, and is background, its label.
        labels: of which structures, by their numbers; of regions that overlap, the number of each, from 1. None named:
            all of them.
        together: take them for one structure.
        voxels: for `remove_small`.
        connectivity: along how many axes neighbours may differ to belong together: 1 are faces, and with 2 or 3 edges
            and corners too; null is as many as there are.

    Raises:
        OptionError: values that make no sense.
    """

    step: Literal["keep_largest", "remove_small", "fill_holes"]
    labels: tuple[int, ...] = ()
    together: bool = False
    voxels: int = 0
    connectivity: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.connectivity not in (None, 1, 2, 3):
            raise OptionError(f"'connectivity' must be 1, 2 or 3, not {self.connectivity}.", "Correct pipeline.json.")
        if (self.step == "remove_small") != (self.voxels > 0):
            raise OptionError("'voxels' is the smallest size that 'remove_small' keeps.", "Correct pipeline.json.")


def cleaned(labels: Array, steps: Sequence[Cleanup]) -> Array:
    """Carry out the steps on a label map (*S), or if it is bool on masks (regions, *S); a copy where there are any."""
    result = labels.copy() if steps else labels
    for step in steps:
        if labels.dtype == np.bool_:
            chosen = [label - 1 for label in step.labels] or range(len(result))
            for k in chosen:
                result[k] = _step(result[k], step)
            continue
        for wanted in _structures(result, step):
            mask = np.isin(result, wanted)
            after = _step(mask, step)
            result[mask & ~after] = 0
            result[after & ~mask & (result == 0)] = wanted[0]
    return result


def _structures(labels: Array, step: Cleanup) -> Iterator[tuple[int, ...]]:
    """The labels of each structure that a step is for."""
    present = tuple(int(n) for n in np.unique(labels) if n)
    wanted = tuple(n for n in present if n in step.labels or not step.labels)
    if step.together:
        yield from [wanted] if wanted else []
    else:
        yield from ((n,) for n in wanted)


def _step(mask: Array, step: Cleanup) -> Array:
    """One structure's mask after the step."""
    if step.step == "fill_holes":
        filled: Array = ndimage.binary_fill_holes(mask)
        return filled
    structure = ndimage.generate_binary_structure(mask.ndim, min(step.connectivity or mask.ndim, mask.ndim))
    parts, count = ndimage.label(mask, structure)
    if not count:
        return mask
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    keep = sizes == sizes.max() if step.step == "keep_largest" else sizes >= step.voxels
    if step.step == "keep_largest":  # of several that are as large, the first
        keep = np.arange(len(sizes)) == np.argmax(sizes)
    kept: Array = keep[parts]
    return kept
