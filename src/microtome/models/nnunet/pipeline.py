"""From nnU-Net's plans to a `Pipeline`: what its preprocessor and its predictor do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from microtome.errors import OptionError
from microtome.medical.cleanup import Cleanup
from microtome.medical.declared_inputs import Input
from microtome.medical.pipeline import Pipeline
from microtome.models.nnunet.plans import Plans

COARSE = 3.0  # nnU-Net's ANISO_THRESHOLD
INTERPOLATION = {0: "nearest", 1: "linear", 3: "cubic"}
RESAMPLING = ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "resample_torch_simple")
PICTURES = ("NaturalImage2DIO",)
STORED = ("SimpleITKIO", "NibabelIO", "Tiff3DIO", "NaturalImage2DIO")
TURNED = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")
PREVIOUS = "previous_stage"
OWN_WAY = "Declare the pipeline yourself with --pipeline."


def pipeline_of(plans: Plans, mirror: Sequence[int], cleanup: Sequence[Cleanup]) -> Pipeline:
    """Return what happens to an image before and after the network.

    nnU-Net takes files as they are stored, with their axes reversed and then in the plans' order; crops to what is not
    0, normalizes, and resamples after that. The scores go back to the crop's own grid before labels are chosen.

    Args:
        plans: of one configuration.
        mirror: axes that may be mirrored, of what the network gets.
        cleanup: what is done at the end.

    Raises:
        OptionError: it does something that no pipeline can say.
    """
    entries = plans.entries
    slices = len(plans.patch) == 2 and not _pictures(plans)
    fields: dict[str, Any] = {
        "task": "segmentation",
        "channels": len(plans.channels),
        "patch": plans.patch,
        "crop": "nonzero",
        "normalize_first": True,
        "overlap": 0.5,
        "blending": "gaussian_voxel",
        "slices": 1 if slices else None,
        "mirror": tuple(axis + slices for axis in mirror),
        "cleanup": tuple(cleanup),
    }
    if entries.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise OptionError(f"{entries['preprocessor_name']} is a preprocessor of its own.", OWN_WAY)
    if plans.previous:
        labels = Input(labels=PREVIOUS, one_hot=len(plans.numbers) - 1, interpolation="linear", into="image")
        fields["inputs"] = {PREVIOUS: labels}
    fields |= _axes(plans, slices) | _intensities(plans) | _labels(plans)
    # A picture's pixel is one millimetre to nnU-Net, in the plans too: nothing is resampled.
    return Pipeline(**fields, **({} if _pictures(plans) else _resampling(entries)))


def _pictures(plans: Plans) -> bool:
    return plans.plans.get("image_reader_writer") in PICTURES


def _axes(plans: Plans, slices: bool) -> dict[str, Any]:
    reader = plans.plans.get("image_reader_writer", "SimpleITKIO")
    forward = [int(axis) for axis in plans.plans.get("transpose_forward", (0, 1, 2))]
    if _pictures(plans):
        if forward != [0, 1, 2]:
            raise OptionError(f"the plans turn pictures ({forward}).", OWN_WAY)
        return {"spatial_dims": 2}
    spacing = (*(None,) * slices, *(float(step) for step in plans.entries["spacing"]))
    fields: dict[str, Any] = {"spatial_dims": 3, "spacing": spacing}
    if reader in TURNED:
        return {**fields, "orientation": "".join("SAR"[axis] for axis in forward)}
    if reader not in STORED:
        raise OptionError(f"the plans' reader {reader} is not known.", OWN_WAY)
    return {**fields, "transpose": tuple(2 - axis for axis in forward)}


def _intensities(plans: Plans) -> dict[str, Any]:
    """How each channel is normalized; those that a scheme says nothing of get neutral numbers."""
    schemes = plans.entries["normalization_schemes"]
    masks = plans.entries.get("use_mask_for_norm") or [False] * len(schemes)
    count = len(plans.channels)
    if len(schemes) != count or len(masks) != count:
        raise OptionError(f"the plans normalize {len(schemes)} channels, and there are {count}.", OWN_WAY)
    kinds, windows, means, deviations = [], [], [], []
    for channel, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
        step = SCHEMES.get(scheme)
        if step is None:
            raise OptionError(f"the plans' normalization {scheme} is not known.", OWN_WAY)
        kind, window, mean, deviation = step(_properties(plans, channel), bool(mask))
        kinds.append(kind)
        windows.append(window)
        means.append(mean)
        deviations.append(deviation)
    fields: dict[str, Any] = {"normalize": kinds[0] if len(set(kinds)) == 1 else tuple(kinds)}
    if "fixed" in kinds:
        fields |= {"mean": tuple(means), "std": tuple(deviations)}
    if any(window is not None for window in windows):
        fields["window"] = windows[0] if count == 1 else tuple(windows)
    return fields


Step = tuple[str, tuple[float, float] | None, float, float]


def _zscore(properties: Mapping[str, Any], mask: bool) -> Step:
    return "zscore_masked" if mask else "zscore", None, 0.0, 1.0


def _ct(properties: Mapping[str, Any], mask: bool) -> Step:
    window = (float(properties["percentile_00_5"]), float(properties["percentile_99_5"]))
    return "fixed", window, float(properties["mean"]), max(float(properties["std"]), 1e-8)


SCHEMES: dict[str, Callable[[Mapping[str, Any], bool], Step]] = {
    "ZScoreNormalization": _zscore,
    "CTNormalization": _ct,
    "NoNormalization": lambda properties, mask: ("none", None, 0.0, 1.0),
    "RescaleTo01Normalization": lambda properties, mask: ("minmax", None, 0.0, 1.0),
    "RGBTo01Normalization": lambda properties, mask: ("fixed", None, 0.0, 255.0),
}


def _properties(plans: Plans, channel: int) -> Mapping[str, Any]:
    found = plans.plans.get(
        "foreground_intensity_properties_per_channel", plans.plans.get("foreground_intensity_properties_by_modality")
    )
    entry: Mapping[str, Any] = (found or {}).get(str(channel), {})
    return entry


def _resampling(entries: Mapping[str, Any]) -> dict[str, Any]:
    image, apart = _resampler(entries, "data", 3)
    scores, back = _resampler(entries, "probabilities", 1)
    if apart != back:
        raise OptionError("the plans treat the coarse axis of images and of scores differently.", OWN_WAY)
    return {"interpolation": image, "score_interpolation": scores, "coarse": apart}


def _resampler(entries: Mapping[str, Any], what: str, usual: int) -> tuple[str, float | None]:
    """The interpolation, and from which ratio of spacings on the coarse axis is treated apart."""
    name = entries.get(f"resampling_fn_{what}", RESAMPLING[0])
    words = entries.get(f"resampling_fn_{what}_kwargs") or {}
    if name not in RESAMPLING:
        raise OptionError(f"the plans' resampling {name} is not known.", OWN_WAY)
    if name == RESAMPLING[2]:
        return "linear", None
    separate = words.get("force_separate_z", None if name == RESAMPLING[1] else False)
    coarse = {None: COARSE, False: None, True: 1.0}[separate]
    if coarse is not None:
        coarse = float(words.get("separate_z_anisotropy_threshold", coarse))
    if name == RESAMPLING[1]:
        return "linear", coarse
    order = words.get("order", usual)
    if order not in INTERPOLATION or words.get("order_z", 0) != 0:
        raise OptionError(f"the plans resample with splines of order {order}.", OWN_WAY)
    return INTERPOLATION[order], coarse


def _labels(plans: Plans) -> dict[str, Any]:
    numbers = plans.numbers
    if numbers != tuple(range(len(numbers))):
        raise OptionError(f"dataset.json numbers its labels {numbers}, not from 0 without gaps.", "Correct them there.")
    single = {n[0]: name for name, n in plans.labels.items() if len(n) == 1}
    classes = tuple(single.get(n, "background" if n == 0 else f"label {n}") for n in numbers)
    if not plans.has_regions:
        return {"classes": classes}
    order = plans.dataset.get("regions_class_order")
    if not isinstance(order, list):
        raise OptionError("dataset.json has regions, but no 'regions_class_order'.", "Add it there, as nnU-Net asks.")
    return {
        "classes": classes,
        "activation": "sigmoid",
        "regions": plans.foreground,
        "regions_order": tuple(int(label) for label in order),
    }
