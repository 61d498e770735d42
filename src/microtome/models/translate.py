"""From what a MONAI bundle declares to a `Pipeline`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from microtome.errors import OptionError
from microtome.medical.pipeline import Pipeline
from microtome.models.declared import Declared, Draft, kind_of, multiple_of, name_of, per_axis
from microtome.models.transforms import BRATS, NOT_THERE, preprocess

# What MONAI's transform of that name makes of BraTS's labels: core, whole, enhancing, in this order of channels.
BRATS_REGIONS = ((1, 4), (1, 2, 4), (4,))
BRATS_LABELS = ("background", "necrosis", "oedema", "label 3", "enhancing")


def translate(declared: Declared) -> tuple[Pipeline | None, tuple[str, ...]]:
    """Return the Pipeline, or None where task or classes stay unknown, and notes on what is not in it."""
    spatial, channels = declared.image.get("spatial_shape"), declared.image.get("num_channels")
    if not isinstance(spatial, list) or len(spatial) not in (2, 3) or not isinstance(channels, int):
        return None, ("The bundle's metadata do not say what shape its images have; declare it with --pipeline.",)
    draft = Draft(len(spatial), channels)
    preprocessing = declared.transforms("preprocessing", "pre_transforms")
    if preprocessing is None:
        return None, ("The bundle's preprocessing cannot be read as data; declare it with --pipeline.",)
    for kind, settings in preprocessing:
        preprocess(draft, kind, settings)
    if draft.dims == 2:
        draft.fields["grayscale"] = draft.channels == 1
        if any(kind == "LoadImage" and settings.get("reverse_indexing", True) for kind, settings in preprocessing):
            draft.notes.append(
                "MONAI reads PNG and JPEG with width before height, microtome with height before width: if the network "
                "was trained on such files, its inputs are transposed here."
            )
    _inferer(draft, declared)
    if not _outputs(draft, declared):
        return None, (*draft.notes, "The bundle's metadata do not name the classes; declare them with --pipeline.")
    if draft.fields.get("size"):
        draft.fields.pop("spacing", None)  # the size of the grid is set whatever the spacing was
    if not draft.fields.get("patch") and not draft.fields.get("size"):
        draft.fields.setdefault("divisible", math.lcm(*(multiple_of(n) for n in spatial)))
    try:
        pipeline = Pipeline(channels=draft.channels, spatial_dims=draft.dims, **draft.fields)
    except (OptionError, TypeError) as error:
        problem = error.problem if isinstance(error, OptionError) else str(error)
        return None, (*draft.notes, f"The bundle's preprocessing makes no pipeline ({problem}); declare it.")
    return pipeline, tuple(draft.notes)


def _inferer(draft: Draft, declared: Declared) -> None:
    inferer = declared.entry("inferer")
    if not isinstance(inferer, Mapping) or kind_of(inferer) == "SimpleInferer":
        return
    patch = per_axis(inferer.get("roi_size"), draft.dims)
    overlap = inferer.get("overlap", 0.25)  # MONAI's default
    if not kind_of(inferer).startswith("SlidingWindowInferer") or not patch or not isinstance(overlap, int | float):
        draft.notes.append(NOT_THERE.format(name_of(inferer), ""))
        return
    draft.fields |= {"patch": tuple(int(n) for n in patch), "overlap": float(overlap)}


def _outputs(draft: Draft, declared: Declared) -> bool:
    """Set task, classes, activation and threshold; return whether they are known."""
    prediction = declared.prediction
    spatial = prediction.get("spatial_shape")
    maps = prediction.get("format") == "segmentation" or (isinstance(spatial, list) and any(n != 1 for n in spatial))
    post = declared.transforms("postprocessing", "post_transforms") or []
    merged: dict[str, Any] = {}
    for kind, settings in post:
        if kind in ("Activations", "AsDiscrete"):
            merged |= {k: v[0] if isinstance(v, list) and v else v for k, v in settings.items()}
        elif maps and kind in ("KeepLargestConnectedComponent", "RemoveSmallObjects", "FillHoles"):
            draft.notes.append(f"the bundle's transform {kind} is not in microtome's pipeline; results are without it")
    definition = prediction.get("channel_def")
    names = [str(name) for name in definition.values()] if isinstance(definition, Mapping) else []
    sigmoid = merged.get("sigmoid") is True or (len(names) == 1 and not merged.get("softmax"))
    if maps and sigmoid and names and names[0].lower() not in ("background", "bg"):
        transforms = declared.transforms("preprocessing", "pre_transforms") or []
        if len(names) == len(BRATS_REGIONS) and any(kind == BRATS for kind, _ in transforms):
            draft.fields["regions"] = dict(zip(names, BRATS_REGIONS, strict=True))
            names = list(BRATS_LABELS)
        else:
            names = ["background", *names]
        if len(names) > 2 and "regions" not in draft.fields:
            draft.notes.append(
                "The bundle's output channels may overlap; microtome gives each voxel the one with the highest score "
                "unless 'regions' in --pipeline says which labels make up each channel."
            )
    elif not maps and len(names) == 1:
        names = [f"no {names[0]}", names[0]]
    if len(names) < 2 or len(set(names)) < len(names):
        return False
    task = "segmentation" if maps else "classification"
    draft.fields |= {"task": task, "classes": tuple(names), "activation": "sigmoid" if sigmoid else "softmax"}
    threshold = merged.get("threshold")
    if sigmoid and isinstance(threshold, float) and 0 < threshold < 1:
        draft.fields["threshold"] = threshold
    if not maps:
        draft.fields.pop("patch", None)
    return True
