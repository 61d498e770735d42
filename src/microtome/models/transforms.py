"""The preprocessing transforms of MONAI bundles as fields of a `Pipeline`, one small function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from microtome.models.declared import Draft, Settings, is_data, name_of, per_axis

# Makes masks of the whole tumour, its core and what enhances of BraTS's label numbers.
BRATS = "ConvertToMultiChannelBasedOnBratsClasses"
# They change nothing that a Pipeline would have to say, or microtome's readers do the same.
SILENT = frozenset(
    (
        *("LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "RepeatChannel"),
        BRATS,  # of the reference: see `translate`
        *("EnsureType", "ToTensor", "CastToType", "ToDevice", "Identity", "CopyItems", "DeleteItems", "SelectItems"),
    )
)
GEOMETRIC = frozenset(("Spacing", "Resize", "CropForeground"))
NOT_THERE = "the bundle's {} is not in microtome's pipeline{}; declare it with --pipeline"


def preprocess(draft: Draft, kind: str, settings: Settings) -> None:
    """Add one transform to the draft, or a note on why not."""
    if kind in SILENT:
        return
    step = STEPS.get(kind)
    if kind in GEOMETRIC and draft.intensities and not (kind == "CropForeground" and draft.zero is not None):
        draft.notes.append(
            f"The bundle runs {draft.intensities[0]} before {kind}; microtome's pipeline changes the grid first, so "
            "that values differ slightly."
        )
    changed = step(draft, settings) if step is not None else None
    if changed is None or not all(is_data(value) for value in changed.values()):
        how = " with these settings" if step else ""
        draft.notes.append(NOT_THERE.format(f"transform {name_of(settings)}", how))
        return
    draft.fields |= changed
    if "normalize" in changed or "percentiles" in changed:
        draft.intensities.append(kind)
    if "normalize" in changed:
        draft.zero = settings.get("a_min") if changed.get("window") and changed["normalize"] == "minmax" else None


def _orientation(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    codes = settings.get("axcodes")
    return {"orientation": codes} if isinstance(codes, str) and draft.dims == 3 else None


def _spacing(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    spacing = per_axis(settings.get("pixdim"), draft.dims)
    return {"spacing": tuple(float(s) for s in spacing)} if spacing and draft.dims == 3 else None


def _resize(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    size = per_axis(settings.get("spatial_size"), draft.dims)
    whole = settings.get("size_mode", "all") == "all"
    return {"size": tuple(int(n) for n in size)} if size and whole else None


def _divisible(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    multiple = per_axis(settings.get("k"), draft.dims)
    return {"divisible": math.lcm(*(int(n) for n in multiple))} if multiple else None


def _crop(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    margin = settings.get("margin", 0)
    if "select_fn" in settings or margin not in (0, [0] * draft.dims) or draft.zero is None:
        return None
    return {"crop": "foreground", "crop_threshold": float(draft.zero)}


def _range(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    """(x − a_min) / (a_max − a_min) · (b_max − b_min) + b_min, perhaps clipped."""
    low, high = settings.get("a_min"), settings.get("a_max")
    target_low, target_high = settings.get("b_min"), settings.get("b_max")
    if target_low is None and target_high is None:
        target_low, target_high = 0, 1
    numbers = (low, high, target_low, target_high)
    if not all(isinstance(n, int | float) for n in numbers):
        return None
    low, high, target_low, target_high = (float(n) for n in numbers if n is not None)
    if low >= high or target_low >= target_high:
        return None
    window = {"window": (low, high)} if settings.get("clip") else {}
    if window and (target_low, target_high) == (0, 1):
        return {**window, "normalize": "minmax"}
    std = (high - low) / (target_high - target_low)
    return {**window, **(_fixed(draft, [low - target_low * std], [std]) or {})}


def _minmax(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    plain = settings.get("minv", 0) == 0 and settings.get("maxv", 1) == 1 and settings.get("factor") is None
    _note_channels(draft, "ScaleIntensity", settings)
    return {"normalize": "minmax"} if plain else None


def _percentiles(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    plain = (settings.get("b_min"), settings.get("b_max")) == (0, 1) and settings.get("clip")
    limits = (settings.get("lower"), settings.get("upper"))
    _note_channels(draft, "ScaleIntensityRangePercentiles", settings)
    return {"percentiles": limits, "normalize": "minmax"} if plain and not settings.get("relative") else None


def _normalize(draft: Draft, settings: Settings) -> dict[str, Any] | None:
    mean, std = settings.get("subtrahend"), settings.get("divisor")
    nonzero = bool(settings.get("nonzero"))
    if mean is None and std is None:
        _note_channels(draft, "NormalizeIntensity", settings)
        return {"normalize": "zscore_nonzero" if nonzero else "zscore"}
    if nonzero or mean is None or std is None:
        return None
    return _fixed(draft, *(value if isinstance(value, list) else [value] for value in (mean, std)))


STEPS: dict[str, Callable[[Draft, Settings], dict[str, Any] | None]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "DivisiblePad": _divisible,
    "CropForeground": _crop,
    "ScaleIntensityRange": _range,
    "ScaleIntensity": _minmax,
    "ScaleIntensityRangePercentiles": _percentiles,
    "NormalizeIntensity": _normalize,
}


def _fixed(draft: Draft, mean: list[float], std: list[float]) -> dict[str, Any] | None:
    if not all(isinstance(n, int | float) for n in (*mean, *std)) or not all(std):
        return None
    repeated = [tuple(v) * draft.channels if len(v) == 1 else tuple(v) for v in (mean, std)]
    return {"normalize": "fixed", "mean": repeated[0], "std": repeated[1]}


def _note_channels(draft: Draft, kind: str, settings: Settings) -> None:
    if draft.channels > 1 and not settings.get("channel_wise"):
        draft.notes.append(f"The bundle's {kind} takes all channels together; microtome's pipeline each by itself.")
