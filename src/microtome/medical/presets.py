"""Normalisation that common sources of networks were trained with, by name: data, for `--preset`.

Each is fields of a `Pipeline`; `mean` and `std` of one value stand for each channel. Pictures are 8-bit, 0 to 255.

Sources: torchvision and timm (`IMAGENET_DEFAULT_MEAN`, `IMAGENET_INCEPTION_MEAN`, `OPENAI_CLIP_MEAN` in timm's
`data/constants.py`), torchxrayvision (`xrv.datasets.normalize`: 2 · x / 255 − 1, times 1024), Keras' applications
(`preprocess_input`: modes `tf`, `torch`), nnU-Net (`ZScoreNormalization`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from microtome.errors import OptionError

if TYPE_CHECKING:
    from microtome.medical.pipeline import Pipeline

PICTURE = {"normalize": "fixed", "scale": 255.0}
IMAGENET = {**PICTURE, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLUS_MINUS_ONE = {**PICTURE, "mean": (0.5,), "std": (0.5,)}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": IMAGENET,
    "torchvision": IMAGENET,
    "timm": IMAGENET,
    "inception": PLUS_MINUS_ONE,
    "keras-tf": PLUS_MINUS_ONE,
    "keras-torch": IMAGENET,
    "clip": {
        **PICTURE,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    },
    "torchxrayvision": {**PICTURE, "mean": (0.5,), "std": (0.5 / 1024,), "grayscale": True, "channels": 1},
    "unit": {"normalize": "unit"},
    "zscore": {"normalize": "zscore"},
}


def with_preset(pipeline: Pipeline, name: str) -> Pipeline:
    """Return a pipeline that normalises as a preset says.

    Args:
        pipeline: guessed; what the preset has no field for stays.
        name: a key of `PRESETS`.

    Raises:
        OptionError: there is no such preset, or it has another number of channels than the pipeline.
    """
    fields = dict(preset(name))
    count = len(fields.get("mean", ()))
    channels = fields.get("channels", count if count > 1 and pipeline.channels == 1 else pipeline.channels)
    fields["channels"] = channels  # gray pictures are repeated for a network of colours
    for key in ("mean", "std"):
        values = fields.get(key)
        if values is not None and len(values) == 1:
            fields[key] = values * channels
        elif values is not None and len(values) != channels:
            raise OptionError(
                f"the preset {name} has {len(values)} channels, the images have {channels}.",
                "Declare the normalisation with --pipeline.",
            )
    defaults = {"window": None, "percentiles": None, "mean": None, "std": None, "scale": 1.0}
    return replace(pipeline, **(defaults | fields))


def preset(name: str) -> Mapping[str, Any]:
    """Return the fields of a preset.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise OptionError(f"there is no preset {name!r}.{meant}", f"Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
