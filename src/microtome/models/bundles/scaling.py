"""The transforms of MONAI bundles that change intensities, as fields of a `Pipeline`, one small function each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from microtome.models.bundles.declared import Settings, is_number
from microtome.models.bundles.draft import Draft
from microtome.models.bundles.intensities import NotExpressibleError, Values

Fields = Mapping[str, Any]


def scale_range(draft: Draft, settings: Settings) -> Fields:
    """(x − a_min) / (a_max − a_min) · (b_max − b_min) + b_min, perhaps clipped."""
    low, high = _numbers(settings, "a_min", "a_max")
    ends: list[Any] = [settings[name] for name in ("b_min", "b_max") if settings.get(name) is not None]
    if not low < high or (settings.get("clip") and len(ends) < 2):
        raise NotExpressibleError("its range does not rise, or it clips one end only")
    values = draft.values
    if settings.get("clip"):
        values = values.windowed(low, high)
    else:
        values = values.scaled([1 / (high - low)], [-low / (high - low)])
    return _now(draft, values if len(ends) < 2 else values.scaled([ends[1] - ends[0]], [ends[0]]))


def scale(draft: Draft, settings: Settings) -> Fields:
    """The image's own range to another one, or a factor."""
    low, high, factor = settings.get("minv", 0.0), settings.get("maxv", 1.0), settings.get("factor")
    if low is None and high is None:
        return _now(draft, draft.values.scaled([1 + (factor or 0)], [0.0]))
    values = draft.values
    if values.kind == "zscore_nonzero":
        draft.note(
            "the bundle's ScaleIntensity follows a normalization that passes over zeros: microtome scales the image's "
            "own values, so that those of exactly 0 become something else."
        )
        values = replace(values, kind="none")
    values = values.normalized("minmax", together=not settings.get("channel_wise"))
    return _now(draft, values if None in (low, high) else values.scaled([high - low], [low]))


def percentiles(draft: Draft, settings: Settings) -> Fields:
    """Percentiles of the image to a range."""
    lower, upper = _numbers(settings, "lower", "upper")
    ends = (settings.get("b_min"), settings.get("b_max"))
    if not settings.get("clip") or None in ends:
        raise NotExpressibleError("it does not clip")
    low, high = (float(n) for n in ends if n is not None)
    if settings.get("relative"):
        low, high = low + (high - low) * lower / 100, low + (high - low) * upper / 100
    together = not settings.get("channel_wise")
    values = draft.values.clipped_to_percentiles(lower, upper, together=together and draft.channels > 1)
    return _now(draft, values.normalized("minmax", together=together).scaled([high - low], [low]))


def clip_percentiles(draft: Draft, settings: Settings) -> Fields:
    """Clipped to percentiles of the image."""
    lower, upper = _numbers(settings, "lower", "upper")
    if settings.get("sharpness_factor") is not None:
        raise NotExpressibleError("it clips softly")
    together = not settings.get("channel_wise") and draft.channels > 1
    return _now(draft, draft.values.clipped_to_percentiles(lower, upper, together=together))


def normalize(draft: Draft, settings: Settings) -> Fields:
    """By mean and deviation, given or measured."""
    mean, std = settings.get("subtrahend"), settings.get("divisor")
    nonzero, together = bool(settings.get("nonzero")), not settings.get("channel_wise")
    if mean is None and std is None:
        return _now(draft, draft.values.normalized("zscore_nonzero" if nonzero else "zscore", together=together))
    if nonzero or mean is None or std is None:
        raise NotExpressibleError("it mixes numbers that are given with what it measures")
    means, stds = ([v] if is_number(v) else list(v) for v in (mean, std))
    if len(means) != len(stds):
        means, stds = (v * draft.channels if len(v) == 1 else v for v in (means, stds))
    if not all(is_number(n) for n in (*means, *stds)) or not all(stds):
        raise NotExpressibleError("it does not name numbers")
    return _now(draft, draft.values.scaled([1 / s for s in stds], [-m / s for m, s in zip(means, stds, strict=True)]))


def shift(draft: Draft, settings: Settings) -> Fields:
    """An offset."""
    return _now(draft, draft.values.scaled([1.0], _numbers(settings, "offset")))


def _now(draft: Draft, values: Values) -> Fields:
    """Go on with these values."""
    fields = values.fields()
    if draft.padded:
        raise NotExpressibleError("it comes after padding")
    for name in ("window", "percentiles", "normalize", "together", "range", "mean", "std"):
        draft.fields.pop(name, None)
    draft.values = values
    return fields


def _numbers(settings: Settings, *names: str) -> list[float]:
    values = [settings.get(name) for name in names]
    if not all(is_number(value) for value in values):
        raise NotExpressibleError(f"its {', '.join(names)} are no numbers")
    return [float(value) for value in values if value is not None]
