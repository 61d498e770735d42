"""What a network returns for a whole image, made numbers of the reference's unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from microtome.errors import DataError, OptionError
from microtome.medical.pipeline import Pipeline
from microtome.types import Array

HINT = "Check its weights and the normalization of the image."


def in_units(values: Array, pipeline: Pipeline) -> Array:
    """Outputs (K, *S) in the unit of their references, float32 or float64 as they came: × scale + offset.

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise DataError("The network returned NaN or infinity.", HINT)
    axes = (1,) * (values.ndim - 1)
    scale, offset = (
        np.asarray(one, values.dtype).reshape(-1, *axes) for one in (pipeline.output_scale, pipeline.output_offset)
    )
    scaled: Array = values * scale + offset
    return scaled


def check_units(pipeline: Pipeline, names: Sequence[str]) -> None:
    """Refuse a scale or an offset that is not one number, or one for each name.

    Raises:
        OptionError: which.
    """
    for field in ("output_scale", "output_offset"):
        value = getattr(pipeline, field)
        if len(value) not in (1, len(names)):
            raise OptionError(
                f"Pipeline: '{field}' must hold one value, or one for each of {', '.join(names)}, not {value}.",
                "Correct pipeline.json.",
            )
    if 0 in pipeline.output_scale:
        raise OptionError("Pipeline: 'output_scale' is 0, which makes every output the same.", "Correct pipeline.json.")


def numbers(output: Array, pipeline: Pipeline) -> Array:
    """The numbers of one image, float64 (K,), from an output (1, K).

    Raises:
        DataError: NaN or infinity, or another count than the pipeline has names.
    """
    values = np.asarray(output, np.float64)
    count = len(pipeline.classes)
    if values.shape != (1, count):
        raise DataError(
            f"The network's output has shape {values.shape}, which does not fit {count} numbers.",
            "Name each of its numbers under 'classes'.",
        )
    return in_units(values[0], pipeline)
