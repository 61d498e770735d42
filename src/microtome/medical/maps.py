"""Images that a network makes: blended from windows, brought back to the image's own grid, as float; and references.

Windows, weights and mirroring are those of label maps (`medical.stream`). What is blended is what the network returns;
its unit is changed when all is put together (`outputs.in_units`). Outside of a crop the result is 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np

from microtome.errors import DataError, GeometryError
from microtome.medical.cohort import Cohort
from microtome.medical.grid import on_grid, same_grid, size_text
from microtome.medical.outputs import in_units
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, antialiased, restore
from microtome.medical.read import read_image
from microtome.medical.resampling import resample
from microtome.medical.stream import Passage, Stream, passed
from microtome.medical.windows import blend, streamable
from microtome.types import Array, Batch, Case, Image


def map_each(
    stream: Stream, images: Iterable[Prepared], pipeline: Pipeline
) -> Generator[Array | DataError, None, None]:
    """The images that a network makes of many prepared ones, in order; float32 (K, *S) on the images' own grids.

    Where the pipeline gives all inputs of the network one shape, the windows of all images go through one stream.

    Yields:
        An image, or what was wrong with the network's output for it; the others go on.
    """
    return passed(stream, (_Map(prepared, pipeline, 1) for prepared in images), pipeline)


class _Map(Passage):
    """One image on its way through the network, of which an image comes back."""

    def labels(self, results: Iterator[Batch], *, difference: bool = True) -> Array:
        """The image on its own grid, from the results for the inputs.

        Raises:
            DataError: they cannot be used.
        """
        prepared, pipeline = self.prepared, self.pipeline
        outputs = self.outputs(results)
        first = next(outputs)
        channels = first[1].shape[0]
        if channels != len(pipeline.classes):
            raise DataError(
                f"The network has {channels} output channels, and {len(pipeline.classes)} are named "
                f"({', '.join(pipeline.classes)}).",
                "Name each channel of the image under 'classes'.",
            )
        whole = not streamable(prepared, pipeline)
        values = np.empty((channels, *(prepared.array.shape[1:] if whole else prepared.content)), np.float32)
        for plane, block in blend(itertools.chain([first], outputs), self.plan):
            values[:, plane : plane + block.shape[1]] = block
        values = values[(slice(None), *prepared.inner)] if whole else values
        if pipeline.undo_normalize:
            values = _undone(values, prepared)
        values = in_units(values, pipeline)
        if prepared.resampled:
            how: dict[str, Any] = {"how": pipeline.score_interpolation, "apart": prepared.apart}
            how["antialias"] = pipeline.spatial_dims == 2 and antialiased(pipeline, pipeline.score_interpolation)
            values = resample(values, prepared.crop, steps=prepared.steps_back, **how)
        return np.stack([restore(channel, prepared) for channel in values])


def _undone(values: Array, prepared: Prepared) -> Array:
    """An image (K, *S) with the normalization of the one that it was made of undone, channel by channel."""
    lines = prepared.back if len(prepared.back) == len(values) else prepared.back[:1] * len(values)
    axes = (1,) * (values.ndim - 1)
    gain, offset = (np.array(part, np.float32).reshape(-1, *axes) for part in zip(*lines, strict=True))
    undone: Array = values * gain + offset
    return undone


def read_target(cohort: Cohort, case: Case, image: Image) -> Array | None:
    """Read the image that a network ought to make of a case, (C, *S) on the case's own grid; None where there is none.

    Raises:
        GeometryError: it lies on another grid; nothing is resampled.
        DataError: what `read_image` raises.
    """
    if case.target is None:
        return None
    target = read_image([case.target])
    cohort.remarks.add(case.id, target.notes)
    if target.array.shape[0] == 1:
        return on_grid(target, image, case.target).array
    if not same_grid(target, image):
        raise GeometryError(
            f"{case.target} ({size_text(target.spatial)}) lies on another grid than its image "
            f"({size_text(image.spatial)}).",
            "Resample it to the grid of the image first.",
        )
    return target.array
