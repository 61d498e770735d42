"""What a bundle's output means: which task it is for, and which classes, regions and activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.models.bundles.declared import Declared, Settings, at_key, is_number, kind_of, sizes_of
from microtome.models.bundles.draft import Draft

# MONAI's word for the format of an output, and the task that this is.
TASKS: Mapping[str, str] = {
    "segmentation": "segmentation",
    "classes": "classification",
    "classification": "classification",
    "regression": "regression",
    "image": "image-to-image",
    "magnitude": "image-to-image",
    "hounsfield": "image-to-image",
}
SEVERAL = "multi-label"  # classes with a sigmoid and a threshold for each
# What microtome has no task for, and what it is.
NO_TASK: Mapping[str, str] = {
    "points": "points",
    "boxes": "boxes, which the bundle makes of it in code of its own",
    "dict": "boxes or other objects, which the bundle makes of it in code of its own",
    "feature": "features",
    "latent": "features",
}
NO_IMAGE = ("noise", "latent", "feature", "tuples")  # types of inputs of networks that make images of something else
LABELS = "labels"  # of voxels or of images: the size of the output says which
BACKGROUND = ("background", "bg", "back ground")
# What MONAI's transform of that name makes of BraTS's labels: core, whole, enhancing, in this order of channels.
BRATS = "ConvertToMultiChannelBasedOnBratsClasses"
BRATS_LABELS = ("background", "necrosis", "oedema")


def task_of(declared: Declared) -> tuple[str | None, str]:
    """Return the task by the metadata's format of the output, or None and what is in the way."""
    prediction = declared.prediction
    word = str(prediction.get("format", "")).lower()
    inside, outside = sizes_of(declared.image.get("spatial_shape")), sizes_of(prediction.get("spatial_shape"))
    if word == LABELS:
        word = "segmentation" if outside == inside else "classes"
    if word == "regression" and outside == inside:
        return None, "The network's output is a map of numbers, and microtome has no task for that from a bundle."
    made = TASKS.get(word) == TASKS["image"]
    if made and (outside != inside or str(declared.image.get("type", "")).lower() in NO_IMAGE):
        return None, "The network makes an image of something else than an image, and microtome has no task for that."
    if word not in TASKS:
        what = NO_TASK.get(word, f"of the format {word!r}" if word else "of a format that its metadata do not name")
        return None, f"The network's output is {what}, and microtome has no task for that; declare it with --pipeline."
    task = TASKS[word]
    numbers = [n for n in (inside or []) + (outside or []) if isinstance(n, int)]
    known = inside and outside and len(numbers) == len(inside) + len(outside)
    if task == TASKS["segmentation"] and known and inside != outside:
        return None, (
            f"The network's output has the size {_times(outside)}, its input {_times(inside)}: microtome has no task "
            "for maps of another size than the image."
        )
    return task, ""


def names_of(definition: Any) -> list[str]:
    """Return names by number, 0, 1, 2, …; none where some are missing."""
    if not isinstance(definition, Mapping):
        return []
    numbered = {str(key).strip(): str(name) for key, name in definition.items()}
    names = [numbered.get(str(number)) for number in range(len(numbered))]
    return [name for name in names if name is not None] if None not in names else []


def settle(draft: Draft, declared: Declared, task: str) -> str:
    """Set task, classes, activation, threshold and regions in a draft; return what is in the way, or nothing."""
    names = names_of(declared.prediction.get("channel_def")) or names_of(declared.prediction.get("label_def"))
    activation, decision = draft.fields.pop("activation", None), draft.fields.pop("decision", None)
    written = draft.fields.pop("written", ())
    names = names or ["image"] * (task == TASKS["image"] and declared.prediction.get("num_channels") == 1)
    if not names or len(set(names)) < len(names):
        return "The bundle's metadata do not name the classes; declare them with --pipeline."
    draft.fields |= {"task": task}
    if task == TASKS["segmentation"]:
        problem = _maps(draft, declared, names, (activation, decision), written)
    elif task == TASKS["regression"]:
        _whole(draft)
        problem = _numbers(draft, names, activation or decision, "numbers")
    elif task == TASKS["image"]:
        problem = _numbers(draft, names, activation or decision, "images")
        draft.note(
            "The images that the network makes are taken to be in the unit of their references. If they are not, say "
            "so by undo_normalize, output_scale and output_offset in --with."
        )
    else:
        problem = _classes(draft, names, activation, decision)
    threshold = draft.fields.get("threshold")
    if threshold is not None and (draft.fields.get("activation") == "softmax" or not 0 < threshold < 1):
        draft.note(f"The bundle compares with {threshold:g}; microtome takes the highest score, or compares with 0.5.")
        del draft.fields["threshold"]
    return problem


def _whole(draft: Draft) -> None:
    """The network gets whole images."""
    for field in ("patch", "overlap", "placement", "blending", "sigma"):
        if draft.fields.pop(field, None) is not None and field == "patch":
            draft.note("The bundle looks at an image window by window, microtome at the whole of it.")


def _numbers(draft: Draft, names: list[str], step: str | None, what: str) -> str:
    if step:
        draft.note(f"The bundle takes {what} through {step}, microtome as the network returns them.")
    if draft.fields.pop("cleanup", None) or draft.fields.pop("decide", None):
        draft.note(f"The bundle treats {what} as labels, microtome does not.")
    draft.fields |= {"classes": tuple(names), "activation": "none"}
    draft.fields.pop("threshold", None)
    return ""


def _classes(draft: Draft, names: list[str], activation: str | None, decision: str | None) -> str:
    _whole(draft)
    single = len(names) == 1
    names = [f"no {names[0]}", names[0]] if single else names
    sigmoid = activation == "sigmoid" if activation else single
    if sigmoid and not single and decision == "threshold":
        draft.fields["task"] = SEVERAL
    elif sigmoid and not single:
        draft.note(
            "Each class of the network has a sigmoid of its own, and the bundle does not decide on them; microtome "
            f"takes them to exclude one another. If several may hold at once, say --with task={SEVERAL}."
        )
    draft.fields |= {"classes": tuple(names), "activation": "sigmoid" if sigmoid else "softmax"}
    if decision == "argmax" and sigmoid and single:
        draft.note("The bundle takes the highest of one score; microtome compares it with the threshold.")
    return ""


def _maps(
    draft: Draft,
    declared: Declared,
    names: list[str],
    chosen: tuple[str | None, str | None],
    written: tuple[tuple[int, int], ...],
) -> str:
    activation, decision = chosen
    channels = declared.prediction.get("num_channels")
    channels = channels if isinstance(channels, int) else len(names)
    background = names[0].strip().lower() in BACKGROUND
    alone = len(names) == 1 or (background and len(names) == 2 and channels == 1)
    if activation is None and alone and decision == "threshold":
        activation = "none"  # what the network returns is compared as it is
    each = activation in ("sigmoid", "none") and decision != "argmax"
    if activation is None and alone:
        draft.note("The bundle does not say what becomes of its one channel; microtome takes it through a sigmoid.")
        activation, each = "sigmoid", True
    if not each:
        if channels != len(names):
            return (
                f"The network has {channels} channels, and the metadata name {len(names)}; declare it with --pipeline."
            )
        if not background:
            draft.note(f"The metadata name no background; microtome takes the first channel, {names[0]}, for it.")
        draft.fields |= {"classes": tuple(names), "activation": "softmax"}
        _unwritten(draft, written)
        return ""
    if background and channels == len(names) > 1:
        draft.note(
            "The bundle decides on each channel by itself, also on that of the background; microtome gives each voxel "
            "the channel with the highest score."
        )
        draft.fields |= {"classes": tuple(names), "activation": "softmax"}
        draft.fields.pop("threshold", None)
        _unwritten(draft, written)
        return ""
    structures = names[1:] if background else names
    draft.fields |= {"activation": activation, "classes": ("background", *structures)}
    if channels != len(structures):
        return (
            f"The network has {channels} channels, and the metadata name {len(structures)}; declare it with --pipeline."
        )
    if len(structures) > 1:
        _overlapping(draft, declared, structures, written)
    return ""


def _overlapping(draft: Draft, declared: Declared, names: list[str], written: tuple[tuple[int, int], ...]) -> None:
    """Regions, where the bundle says which labels make them up."""
    brats = [item for _, item in declared.mentioned() if kind_of(item) == BRATS] if len(names) == 3 else []
    if not brats:
        draft.note(
            "The bundle's output channels may overlap; microtome gives each voxel the one with the highest score "
            "unless 'regions' in --pipeline says which labels make up each channel."
        )
        _unwritten(draft, written)
        return
    most = brats[0].get("et_label", 4)
    most = most if is_number(most) and most > 2 else 4
    regions = dict(zip(names, ((1, most), (1, 2, most), (most,)), strict=True))
    others = [f"label {number}" for number in range(len(BRATS_LABELS), most)]
    draft.fields |= {"regions": regions, "classes": (*BRATS_LABELS, *others, "enhancing")}
    if written and all(0 <= channel < len(names) for channel, _ in written):
        order = [names[channel] for channel, _ in reversed(written)]  # the first one of the bundle's wins
        own = {names[1]: 2, names[0]: 1, names[2]: most}
        if len(set(order)) == len(names) and all(own[names[channel]] == label for channel, label in written):
            draft.fields["regions_order"] = tuple(order)
            return
    _unwritten(draft, written)


def _unwritten(draft: Draft, written: tuple[tuple[int, int], ...]) -> None:
    if written:
        rule = ", ".join(f"{label} where channel {channel} is" for channel, label in written)
        draft.note(f"The bundle writes labels of its own: {rule}. microtome numbers them in the order of the classes.")


# Transforms of references that change what a label means, so that references must be changed before, or declared.
RENAME = frozenset(
    (
        *("MapLabelValue", "Lambda", "Relabel", "LabelFilter", "LabelToMask", "SplitLabel", "SetLabelClass"),
        *("NormalizeLabelsInDataset", "MergeClasses", "LabelToContour", "ThresholdIntensity"),
    )
)


def references(draft: Draft, declared: Declared) -> None:
    """Tell of transforms that give references other labels, in whatever config of the bundle they stand."""
    found: dict[str, list[str]] = {}
    for file, item in declared.mentioned():
        if kind_of(item) in RENAME:
            found.setdefault(_renamed(declared, item), []).append(file)
    for what, files in found.items():
        draft.note(
            f"The bundle changes the labels of its references ({what}, in {', '.join(dict.fromkeys(files))}): those of "
            "the cohort must be the network's own."
        )


def _renamed(declared: Declared, item: Settings) -> str:
    kind, settings = kind_of(item), declared.plain(dict(at_key(item, ("label",))))
    old, new = settings.get("orig_labels"), settings.get("target_labels")
    if kind == "MapLabelValue" and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        changed = [f"{one}→{other}" for one, other in zip(old, new, strict=True) if one != other]
        return f"{kind} {', '.join(changed) or 'of none'}"
    return kind


def _times(sizes: list[int | str] | None) -> str:
    return "×".join(map(str, sizes or ()))
