"""The inferer of a MONAI bundle as fields of a `Pipeline`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from microtome.models.bundles.declared import Settings, is_number
from microtome.models.bundles.draft import Draft, Table
from microtome.models.bundles.intensities import NotExpressibleError

Fields = Mapping[str, Any]
OVERLAP, SIGMA = 0.25, 0.125  # MONAI's defaults
LEAST = 1e-3  # the smallest weight that MONAI gives a voxel of a window


def _simple(_: Draft, __: Settings) -> str:
    return "the network gets the whole image"


def _sliding(draft: Draft, settings: Settings) -> Fields:
    return _windows(draft, settings, draft.dims)


def _slices(draft: Draft, settings: Settings) -> Fields:
    """A network of pictures, on a volume's slices; `translate` has made the draft one of volumes."""
    axis = settings.get("spatial_dim", 0)
    if axis not in (0, 1, 2):
        raise NotExpressibleError("it does not name an axis of a volume")
    draft.slice_axis = axis
    return {"slices": 1, **_windows(draft, settings, 2)}


def _windows(draft: Draft, settings: Settings, dims: int) -> Fields:
    size = settings.get("roi_size")
    sizes = [size] * dims if isinstance(size, int) else size
    if (
        not isinstance(sizes, list | tuple)
        or len(sizes) != dims
        or not all(isinstance(n, int) and n > 0 for n in sizes)
    ):
        raise NotExpressibleError("its window is not a size for each axis")
    overlap, sigma = settings.get("overlap", OVERLAP), settings.get("sigma_scale", SIGMA)
    if not is_number(overlap) or not is_number(sigma):
        raise NotExpressibleError("its overlap or its weights differ between the axes")
    fields: dict[str, Any] = {"patch": tuple(sizes), "overlap": float(overlap), "placement": "stepwise"}
    mode = settings.get("mode", "constant")
    if mode not in ("constant", "gaussian"):
        raise NotExpressibleError(f"it blends windows by {mode!r}")
    fields |= {"blending": mode} if mode == "constant" else {"sigma": float(sigma)} if sigma != SIGMA else {}
    if mode == "gaussian" and math.exp(-dims * (0.5 / sigma) ** 2 / 2) < LEAST:
        draft.note(
            "the bundle's Gaussian weights of windows end at a thousandth, microtome's go on: where only corners of "
            "windows meet, scores differ slightly."
        )
    if settings.get("padding_mode", "constant") != "constant" or settings.get("cval", 0):
        draft.note(
            "the bundle's inferer pads images that are smaller than its window with something else than zeros; "
            "microtome with zeros."
        )
    return fields


WINDOWS = ("roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device")
SPEED = ("progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim", "with_coord")
TRANSLATED: Table = {
    "SimpleInferer": (_simple, ()),
    "SlidingWindowInferer": (_sliding, (*WINDOWS, *SPEED)),
    "SlidingWindowInfererAdapt": (_sliding, (*WINDOWS, *SPEED)),
    "SliceInferer": (_slices, ("spatial_dim", *WINDOWS, *SPEED)),
}
