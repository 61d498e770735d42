"""The transforms of MONAI bundles that read, turn, resample, cut and pad, as fields of a `Pipeline`."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

from microtome.models.bundles.declared import LABELS, Settings, is_number, per_axis
from microtome.models.bundles.draft import NUMBERS, Draft
from microtome.models.bundles.intensities import NotExpressibleError
from microtome.models.bundles.known import SAME_FILE

Fields = Mapping[str, Any]
LINEAR = (None, "bilinear", "linear", "trilinear", 1)
DIRECTIONS = ([["L", "R"], ["P", "A"], ["I", "S"]], (("L", "R"), ("P", "A"), ("I", "S")))
READERS_IN_ORDER = ("NumpyReader", "NibabelReader", "NrrdReader")  # they keep the order of the axes


def load(draft: Draft, settings: Settings) -> Fields | str:
    """MONAI reads pictures with width before height."""
    keys = settings.get("keys", ())
    images = [key for key in ([keys] if isinstance(keys, str) else keys) if key not in LABELS]
    if len(images) > 1:
        draft.note(f"The network's channels are of several images, {', '.join(images)}: the cohort must give them so.")
    kind = settings.get("dtype")
    if kind not in NUMBERS and not (kind == "uint8" and draft.dims == 2):
        raise NotExpressibleError(f"it turns values into {kind}")
    converter = settings.get("converter")
    if converter is not None and not _converts(str(converter), draft.channels):
        draft.note("the bundle's LoadImage converts pictures by code of its own; microtome reads them as they are.")
    if settings.get("affine_lps_to_ras") is False:
        raise NotExpressibleError("it leaves directions as ITK has them")
    reader = str(settings.get("reader") or "").rpartition(".")[2]
    reversed_ = settings.get("reverse_indexing", True) and reader not in READERS_IN_ORDER
    return {"transpose": (1, 0)} if draft.dims == 2 and reversed_ else SAME_FILE


def _converts(converter: str, channels: int) -> bool:
    """Whether it is PIL's conversion to as many channels as the network takes."""
    mode = "RGB" if channels == 3 else "L" if channels == 1 else "?"
    return f".convert('{mode}')" in converter.replace('"', "'")


def orientation(draft: Draft, settings: Settings) -> Fields:
    """Codes of the axes."""
    codes = "RAS" if settings.get("as_closest_canonical") else settings.get("axcodes")
    if not isinstance(codes, str) or draft.dims != 3 or len(codes) != 3:
        raise NotExpressibleError(
            "it needs three axes and their codes" if draft.dims == 3 else "pictures have no codes"
        )
    if settings.get("labels") not in (None, *DIRECTIONS):
        raise NotExpressibleError("it has letters of its own for directions")
    if draft.turned or draft.fields.get("size") or draft.fields.get("transpose"):
        raise NotExpressibleError("it turns axes that were resampled or reordered before")
    if draft.resampled:
        draft.note(
            f"The bundle runs {draft.resampled} before Orientation, microtome after: grids may be off by a part of a "
            "voxel."
        )
    return {"orientation": codes.upper()}


def transpose(draft: Draft, settings: Settings) -> Fields:
    """Another order of the axes as they are stored."""
    indices = settings.get("indices")
    if not isinstance(indices, list | tuple) or sorted(map(str, indices)) != sorted(map(str, range(draft.dims + 1))):
        raise NotExpressibleError("it does not name each axis once")
    if indices[0] != 0 or draft.resampled or draft.fields.get("orientation"):
        raise NotExpressibleError("it reorders more than the stored axes")
    before = draft.fields.pop("transpose", None) or tuple(range(draft.dims))
    return {"transpose": tuple(before[int(i) - 1] for i in indices[1:])}


def spacing(draft: Draft, settings: Settings) -> Fields:
    """Millimetres per voxel, with the first voxels' centres together."""
    given = settings.get("pixdim")
    if draft.fields.get("transpose"):
        raise NotExpressibleError("MONAI does not reorder the spacing with the axes")
    values: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if draft.dims != 3 or not values or not all(is_number(n) for n in values):
        raise NotExpressibleError("it needs millimetres for each axis of a volume")
    if any(settings.get(name) for name in ("diagonal", "min_pixdim", "max_pixdim")):
        raise NotExpressibleError("its grid depends on more than one spacing")
    values = (values + values[-1:] * draft.dims)[: draft.dims]  # as MONAI fills up
    how = _interpolation(draft, "Spacing", settings, draft.fields.get("interpolation"))
    if settings.get("padding_mode") not in (None, "border"):
        draft.note(
            f"the bundle's Spacing has {settings['padding_mode']} beyond the border, microtome the border's values."
        )
    spacing = tuple(float(n) if n > 0 else None for n in values)
    _resampled(draft, "Spacing", turned=len(set(spacing)) > 1)
    aligned: Fields = {} if settings.get("scale_extent") else {"align": "centres"}
    return {"spacing": spacing, **aligned, **how}


def resize(draft: Draft, settings: Settings) -> Fields:
    """A size in voxels."""
    size = settings.get("spatial_size")
    size = (
        [int(n) if isinstance(n, str) and n.isdigit() else n for n in size] if isinstance(size, list | tuple) else size
    )
    sizes = per_axis(size, draft.dims)
    if not sizes or settings.get("size_mode", "all") != "all":
        raise NotExpressibleError("its size depends on the image")
    if settings.get("align_corners"):
        raise NotExpressibleError("it aligns corners")
    how = {**_interpolation(draft, "Resize", settings, "area")}
    if settings.get("anti_aliasing"):
        draft.note("the bundle's Resize smooths with a Gaussian first, microtome averages over a triangle.")
        how |= {"antialias": True}
    _resampled(draft, "Resize")
    draft.fields.pop("spacing", None)  # the size of the grid is set whatever the spacing was
    draft.fields.pop("align", None)
    plain = {"antialias": False} if draft.dims == 2 else {}  # of pictures, microtome would average over what shrinks
    return {"size": tuple(int(n) for n in sizes), **plain, **how}


def _interpolation(draft: Draft, kind: str, settings: Settings, default: Any) -> Fields:
    """How a transform that resamples interpolates; MONAI's names, and the orders of its splines."""
    mode = settings.get("mode", default)
    if mode in LINEAR:
        return {}
    if mode in ("area", "nearest-exact") and kind == "Resize":
        return {"interpolation": "area" if mode == "area" else "nearest"}
    if mode in ("nearest", 0):
        draft.note(
            f"the bundle's {kind} takes nearest voxels by a rule of its own; microtome the nearest by their centres."
        )
        return {"interpolation": "nearest"}
    if mode in ("bicubic", "cubic", 3):
        draft.note(f"the bundle's {kind} interpolates with other cubic curves than microtome.")
        return {"interpolation": "cubic"}
    raise NotExpressibleError(f"microtome does not interpolate by {mode!r}")


def _resampled(draft: Draft, kind: str, *, turned: bool = False) -> None:
    """Remember that the grid has changed, and what the values were before."""
    if draft.padded:
        raise NotExpressibleError("it comes after padding")
    if draft.resampled:
        draft.note(f"The bundle resamples by {draft.resampled} and by {kind}, microtome once.")
    else:
        draft.before = draft.values
    draft.resampled, draft.turned = kind, turned


def divisible(draft: Draft, settings: Settings) -> Fields:
    """Zeros up to a multiple."""
    multiple = per_axis(settings.get("k"), draft.dims)
    if not multiple:
        raise NotExpressibleError("it does not name a multiple for each axis")
    size = draft.fields.get("size")
    if size and not any(n % k for n, k in zip(size, multiple, strict=True)):
        return {}
    if size or draft.fields.get("patch"):
        raise NotExpressibleError("microtome pads what the network gets as a whole and in its own size")
    if len(set(multiple)) > 1:
        draft.note("the bundle's DivisiblePad has a multiple for each axis, microtome the least common one for all.")
    return {"divisible": math.lcm(*(int(n) for n in multiple)), **_padding(draft, settings)}


def spatial_pad(draft: Draft, settings: Settings) -> str:
    """Zeros up to a size: what a sliding window does anyway."""
    size, patch = settings.get("spatial_size"), draft.fields.get("patch")
    sizes = [size] * draft.dims if isinstance(size, int) else size
    if not isinstance(sizes, list | tuple) or not patch or len(sizes) != len(patch):
        raise NotExpressibleError("it pads to a size that is not the window's")
    if any(n > p for n, p in zip(sizes, patch, strict=True)) or _padding(draft, settings)["padding"] != "both":
        raise NotExpressibleError("it pads to more than the window, or on one side")
    return "the sliding window pads as much"


def _padding(draft: Draft, settings: Settings) -> Fields:
    if settings.get("mode", "constant") != "constant" or settings.get("value", 0) or settings.get("constant_values", 0):
        raise NotExpressibleError("it pads with something else than zeros")
    draft.padded = True
    return {"padding": "end" if settings.get("method") == "end" else "both"}


def crop(draft: Draft, settings: Settings) -> Fields:
    """The box of what lies above a number."""
    select = settings.get("select_fn")
    threshold = 0.0 if select is None or str(select).endswith("is_positive") else _above(str(select))
    margins = settings.get("margin", 0)
    margins = margins if isinstance(margins, list | tuple) else [margins]
    source = settings.get("source_key")
    if (
        threshold is None
        or len(set(margins)) != 1
        or not isinstance(margins[0], int)
        or settings.get("channel_indices")
    ):
        raise NotExpressibleError("it does not crop to what lies above a number")
    if source is not None and draft.keys and source not in draft.keys:
        raise NotExpressibleError(f"it crops to the foreground of {source}")
    divisible = settings.get("k_divisible", 1)
    if any(k != 1 for k in (divisible if isinstance(divisible, list | tuple) else [divisible])):
        draft.note("the bundle's CropForeground makes its box larger, to a multiple; microtome does not.")
    if margins[0] and not settings.get("allow_smaller", False):
        draft.note("the bundle's CropForeground pads where its margin reaches beyond the image; microtome ends there.")
    if draft.resampled:
        draft.note(
            f"The bundle crops after {draft.resampled}, microtome before: its grid begins elsewhere within a voxel, "
            "and the margin is in other voxels."
        )
    margin = {"crop_margin": margins[0]} if margins[0] else {}
    return {"crop": "foreground", "crop_threshold": draft.values.back(threshold), **margin}


def _above(function: str) -> float | None:
    """The number of `lambda x: x > number`; None of anything else."""
    try:
        tree = ast.parse(function.removeprefix("$").strip(), mode="eval").body
    except SyntaxError:
        return None
    match tree:
        case ast.Lambda(ast.arguments(args=[ast.arg(arg=name)]), ast.Compare(ast.Name(other), [ast.Gt()], [number])):
            try:
                value = ast.literal_eval(number)
            except ValueError:
                return None
            return float(value) if name == other and is_number(value) else None
    return None


def repeat(draft: Draft, settings: Settings) -> str:
    """Gray as colour."""
    if draft.dims == 3:
        raise NotExpressibleError("it repeats a volume's channel")
    return "one gray channel is repeated where the network takes more"


def concat(draft: Draft, settings: Settings) -> str:
    """Images one after the other as channels."""
    if settings.get("dim", 0) != 0:
        raise NotExpressibleError("it puts images side by side")
    keys = [str(key) for key in settings.get("keys", ())]
    draft.note(f"The network's channels are {', '.join(keys)}, in this order: the cohort must give them so.")
    draft.keys, draft.loaded = (str(settings.get("name")),), ()
    return "images become channels"
