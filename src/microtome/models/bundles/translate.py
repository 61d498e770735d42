"""From what a MONAI bundle declares to a `Pipeline`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microtome.errors import OptionError
from microtome.medical.pipeline import Pipeline
from microtome.models.bundles import inferers, meaning, outputs, transforms
from microtome.models.bundles.declared import LABELS, Declared, Settings, Step, keys_of, kind_of, multiple_of, sizes_of
from microtome.models.bundles.draft import Draft, take
from microtome.models.bundles.intensities import Values

STAGES = ("preprocessing", "inferer", "postprocessing")
COLOURS = (["r", "g", "b"], ["red", "green", "blue"])


@dataclass(frozen=True)
class Translation:
    """What a bundle's declarations come to.

    Attributes:
        pipeline: None where something is not known that it needs.
        notes: what is not in it, or not quite.
        steps: what became of each transform and of the inferer, in their order.
        problem: why there is no pipeline; empty if there is one.
    """

    pipeline: Pipeline | None
    notes: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    problem: str = ""


def translate(declared: Declared) -> Translation:
    """Make a Pipeline of all that a bundle declares; whatever is not in it is noted."""
    image = declared.image
    spatial, channels = sizes_of(image.get("spatial_shape")), image.get("num_channels")
    inferer = declared.entry("inferer")
    before = declared.transforms("preprocessing", "pre_transforms")
    after = declared.transforms("postprocessing", "post_transforms")
    known = spatial is not None and len(spatial) in (2, 3) and isinstance(channels, int) and channels > 0
    dims, count = (len(spatial), channels) if known and spatial and isinstance(channels, int) else (3, 1)
    sliced = isinstance(inferer, Mapping) and kind_of(inferer) == "SliceInferer" and dims == 2
    images, loaded = _images(before or [])
    draft = Draft(3 if sliced else dims, count, images, loaded if len(loaded) > 1 else ())
    if isinstance(inferer, Mapping):
        take(draft, "inferer", inferer, inferers.TRANSLATED)
    for item in before or ():
        take(draft, "preprocessing", item, transforms.TRANSLATED)
    draft.keys, draft.loaded = _predictions(after or [], images), ()
    for item in after or ():
        take(draft, "postprocessing", item, outputs.TRANSLATED)
    problem = _problem(draft, declared, known=known, readable=before is not None)
    pipeline = None
    if not problem:
        _order(draft)
        _channels(draft, image)
        _sliced(draft)
        _multiple(draft, spatial or [])
        try:
            pipeline = Pipeline(channels=draft.channels, spatial_dims=draft.dims, **draft.fields)
        except (OptionError, TypeError) as error:
            why = error.problem if isinstance(error, OptionError) else str(error)
            problem = f"The bundle's declarations make no pipeline ({why}); declare it with --pipeline."
    steps = tuple(sorted(draft.steps, key=lambda step: STAGES.index(step.stage)))
    notes = (*draft.notes, problem) if problem else tuple(draft.notes)
    return Translation(pipeline, notes, steps, problem)


def _images(items: list[Settings]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of images, and of those among them that are read; without a reader, all keys but those of references."""
    loaded = [key for item in items if kind_of(item) == "LoadImage" for key in keys_of(item) if key not in LABELS]
    used = loaded or [key for item in items for key in keys_of(item) if key not in LABELS]
    return tuple(dict.fromkeys((*used, "image"))), tuple(dict.fromkeys(loaded))


def _predictions(items: list[Settings], images: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of whatever is no image and no reference."""
    return tuple(dict.fromkeys(key for item in items for key in keys_of(item) if key not in (*images, *LABELS)))


def _problem(draft: Draft, declared: Declared, *, known: bool, readable: bool) -> str:
    """Settle task and classes; return why there can be no pipeline, or nothing."""
    name, problem = meaning.task_of(declared)
    if name is None:
        return problem
    if not known:
        return "The bundle's metadata do not say what shape its images have; declare it with --pipeline."
    if not readable:
        return "The bundle's preprocessing cannot be read as data; declare it with --pipeline."
    if not isinstance(declared.entry("inferer"), Mapping | None):
        draft.note("The bundle's inferer cannot be read as data; microtome gives the network the whole image.")
    composed = declared.entry("preprocessing", "pre_transforms")
    if isinstance(composed, Mapping) and composed.get("lazy"):
        draft.note(
            "The bundle's preprocessing is lazy: MONAI resamples once for several transforms, microtome for each."
        )
    if len(declared.outputs) > 1:
        draft.note(f"The metadata name several outputs ({', '.join(declared.outputs)}); what they say here is of one.")
    after = ("postprocessing", "post_transforms")
    if declared.entry(*after) is not None and declared.transforms(*after) is None:
        draft.note("The bundle's postprocessing cannot be read as data; microtome takes the highest score.")
    meaning.references(draft, declared)
    return meaning.settle(draft, declared, name)


def _order(draft: Draft) -> None:
    """Whether intensities come before resampling, as far as that makes a difference."""
    if (
        draft.resampled
        and draft.order
        and "Invert" not in draft.order
        and draft.fields["task"] == meaning.TASKS["segmentation"]
    ):
        draft.fields["decide"] = "network"
        draft.note("The bundle leaves labels on the network's grid; microtome brings them back by nearest neighbour.")
    before, now = draft.before, draft.values
    if before is None or not before.bends:
        return
    if _kind(before) == _kind(now):
        draft.fields["normalize_first"] = True
    else:
        draft.note(
            f"The bundle changes intensities before and after {draft.resampled}, microtome only after it, so that "
            "values differ slightly."
        )


def _kind(values: Values) -> tuple[Any, ...]:
    return values.window, values.percentiles, values.kind, values.together


def _channels(draft: Draft, image: Mapping[str, Any]) -> None:
    """Gray or colour; and the order of channels, which only the user can see to."""
    if draft.dims == 2:
        draft.fields["grayscale"] = draft.channels == 1
    names = meaning.names_of(image.get("channel_def"))
    if draft.channels < 2 or len(names) != draft.channels or any("must give them so" in note for note in draft.notes):
        return
    if [name.lower() for name in names] not in COLOURS:
        draft.note(f"The network's channels are {', '.join(names)}, in this order: the cohort must give them so.")


def _sliced(draft: Draft) -> None:
    """Put the axis of the slices first, as microtome has it."""
    if draft.slice_axis is None:
        return
    order = (draft.slice_axis, *(axis for axis in range(3) if axis != draft.slice_axis))
    fields = draft.fields
    if fields.get("orientation"):
        fields["orientation"] = "".join(fields["orientation"][axis] for axis in order)
    else:
        stored = fields.pop("transpose", (0, 1, 2))
        stored = tuple(stored[axis] for axis in order)
        fields |= {"transpose": stored} if stored != (0, 1, 2) else {}
    if fields.get("spacing"):
        fields["spacing"] = tuple(fields["spacing"][axis] for axis in order)
    if size := fields.pop("size", None):
        draft.note(f"the bundle's Resize to {size} changes the number of slices; microtome does not resize.")
        fields.pop("interpolation", None)


def _multiple(draft: Draft, spatial: list[int | str]) -> None:
    """What the metadata say of sizes, where the network gets whole images."""
    if not draft.fields.get("patch") and not draft.fields.get("size"):
        multiple = math.lcm(*(multiple_of(n) for n in spatial))
        draft.fields["divisible"] = math.lcm(multiple, draft.fields.get("divisible", 1))
