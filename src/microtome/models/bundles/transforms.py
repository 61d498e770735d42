"""Which preprocessing transforms of MONAI bundles are translated, and which of their settings that looks at."""

from __future__ import annotations

from microtome.models.bundles import geometry, scaling
from microtome.models.bundles.draft import Table

READING = ("dtype", "reader", "image_only", "ensure_channel_first", "simple_keys", "converter", "reverse_indexing")
GRID = ("mode", "align_corners", "ensure_same_shape")
PAD = ("mode", "method", "value", "constant_values")
CROP = ("select_fn", "channel_indices", "margin", "allow_smaller", "k_divisible", "mode", "source_key")
TRANSLATED: Table = {
    "LoadImage": (
        geometry.load,
        (*READING, "affine_lps_to_ras", "prune_meta_pattern", "prune_meta_sep", "channel_dim"),
    ),
    "Orientation": (geometry.orientation, ("axcodes", "as_closest_canonical", "labels")),
    "Transpose": (geometry.transpose, ("indices",)),
    "Spacing": (
        geometry.spacing,
        (*GRID, "pixdim", "diagonal", "padding_mode", "scale_extent", "recompute_affine", "min_pixdim", "max_pixdim"),
    ),
    "Resize": (
        geometry.resize,
        (*GRID, "spatial_size", "size_mode", "anti_aliasing", "anti_aliasing_sigma"),
    ),
    "DivisiblePad": (geometry.divisible, ("k", *PAD)),
    "SpatialPad": (geometry.spatial_pad, ("spatial_size", *PAD)),
    "CropForeground": (geometry.crop, (*CROP, "start_coord_key", "end_coord_key", "return_coords")),
    "ScaleIntensityRange": (scaling.scale_range, ("a_min", "a_max", "b_min", "b_max", "clip")),
    "ScaleIntensity": (scaling.scale, ("minv", "maxv", "factor", "channel_wise")),
    "ScaleIntensityRangePercentiles": (
        scaling.percentiles,
        ("lower", "upper", "b_min", "b_max", "clip", "relative", "channel_wise"),
    ),
    "ClipIntensityPercentiles": (
        scaling.clip_percentiles,
        ("lower", "upper", "sharpness_factor", "channel_wise", "return_clipping_values"),
    ),
    "NormalizeIntensity": (scaling.normalize, ("subtrahend", "divisor", "nonzero", "channel_wise")),
    "ShiftIntensity": (scaling.shift, ("offset", "safe")),
    "RepeatChannel": (geometry.repeat, ("repeats",)),
    "ConcatItems": (geometry.concat, ("name", "dim")),
}
