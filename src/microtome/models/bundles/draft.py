"""A `Pipeline` while it is put together from what a bundle declares, with what became of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from microtome.models.bundles.declared import Settings, Step, at_key, disabled, is_data, keys_of, kind_of, name_of
from microtome.models.bundles.intensities import NotExpressibleError, Values
from microtome.models.bundles.known import HARMLESS, OWN_OUTPUT, why_not

NOT_THERE = "the bundle's {} is not in microtome's pipeline: {}; declare it with --pipeline"
# Settings that any transform may have, and that say nothing of what it does to an image.
COMMON = frozenset(
    (
        *("_target_", "_desc_", "_disabled_", "_requires_", "_imports_", "keys", "allow_missing_keys", "meta_keys"),
        *("dtype", "meta_key_postfix", "image_meta_key", "lazy", "map_items", "track_meta", "overwriting"),
    )
)
# Settings that are functions or objects: what looks at them reads them as text, or does not need them.
AS_TEXT = frozenset(("transform", "func", "inv_func", "post_func", "select_fn", "converter", "reader", "device"))
NUMBERS = (None, "float", "float32", "float64", "double", "tensor", "numpy")  # they hold what a file holds


@dataclass
class Draft:
    """The Pipeline so far.

    Attributes:
        dims: spatial axes of the image.
        channels: of the image.
        keys: of the items that are images, or predictions.
        loaded: of the images that are read from files, as long as they are not put together.
        fields: of the Pipeline.
        notes: what is not in it, or not quite.
        said: what was noted of the present step, also if it had been noted before.
        steps: what became of each transform.
        values: what the intensities have become so far.
        before: what they had become before the first resampling; None as long as there was none.
        resampled: the transform that changed the size of the grid.
        turned: whether that was by a spacing that differs between the axes.
        padded: whether zeros were added.
        onehot: the prediction is one mask per class, as MONAI goes on with it.
        slice_axis: along which the network gets slices, as MONAI counts axes; None if it does not.
        order: the kinds of transforms of the prediction so far.
    """

    dims: int
    channels: int
    keys: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    values: Values = field(init=False)
    before: Values | None = None
    resampled: str | None = None
    turned: bool = False
    padded: bool = False
    onehot: bool = False
    slice_axis: int | None = None
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with the image's own values."""
        self.values = Values.untouched(self.channels)

    def note(self, text: str) -> None:
        """Tell the user."""
        self.said.append(text)
        if text not in self.notes:
            self.notes.append(text)


Handler = Callable[[Draft, Settings], Mapping[str, Any] | str]
"""Puts a transform into the draft, and returns the fields that say it, or why none has to. Settings are plain data."""

Table = Mapping[str, tuple[Handler, tuple[str, ...]]]
"""By kind of transform: what translates it, and the settings that this looks at."""


def take(draft: Draft, stage: str, item: Settings, table: Table) -> None:
    """Put one transform into the draft: translated, known to be harmless, or noted."""
    kind, name = kind_of(item), name_of(item)
    draft.said.clear()
    try:
        what = _taken(draft, kind, item, table)
    except NotExpressibleError as reason:
        draft.note(NOT_THERE.format(f"{'inferer' if stage == 'inferer' else 'transform'} {name}", reason))
        draft.steps.append(Step(stage, name, "noted", str(reason)))
        return
    verdict, words = "harmless", what
    if not isinstance(what, str):
        draft.fields |= what
        verdict, words = "translated", in_words(what)
    if draft.said:
        verdict, words = "noted", "; ".join([str(words), *draft.said])
    draft.steps.append(Step(stage, name, verdict, str(words)))


def _taken(draft: Draft, kind: str, item: Settings, table: Table) -> Mapping[str, Any] | str:
    """Return the fields that a transform becomes, or why it is harmless.

    Raises:
        NotExpressibleError: it is neither.
    """
    off = disabled(item)
    if off is None:
        raise NotExpressibleError("whether it is disabled is an expression that microtome does not work out")
    if off:
        return "it is disabled"
    target = str(item.get("_target_", "?"))
    if "." in target and not target.startswith("monai."):
        raise NotExpressibleError("it is the bundle's own code")
    keys = keys_of(item)
    if not is_data(list(keys)):
        raise NotExpressibleError("which items it is for is an expression that microtome does not work out")
    if keys and draft.keys and not set(keys) & set(draft.keys):
        return f"for {', '.join(keys)} only"
    if set(keys) & set(draft.loaded) and not set(draft.loaded) <= set(keys):
        raise NotExpressibleError(
            f"it is for {', '.join(keys)} alone, and the network's channels are of several images"
        )
    each = [at_key(item, (key,)) for key in draft.keys if key in keys] or [item]
    if any(settings != each[0] for settings in each):
        raise NotExpressibleError("its settings differ between the images that are the network's channels")
    settings = each[0]
    if settings.get("lazy"):
        draft.note(f"the bundle's {kind} is lazy: MONAI resamples once for several transforms, microtome for each.")
    if kind in table:
        handler, looked_at = table[kind]
        strange = sorted(set(settings) - COMMON - set(looked_at))
        if strange:
            raise NotExpressibleError(f"microtome does not know its {', '.join(strange)}")
        closed = [name for name in looked_at if name not in AS_TEXT and not is_data(settings.get(name))]
        if closed:
            raise NotExpressibleError(f"its {', '.join(closed)} is an expression that microtome does not work out")
        if "dtype" not in looked_at:
            _check_type(settings)
        return handler(draft, settings)
    if kind in HARMLESS:
        if HARMLESS[kind] != OWN_OUTPUT:
            _check_type(settings)
        return HARMLESS[kind]
    raise NotExpressibleError(why_not(kind))


def _check_type(settings: Settings) -> None:
    """Refuse to round values to another type.

    Raises:
        NotExpressibleError: the type does not hold what an image may.
    """
    for name in ("dtype", "data_type"):
        value = settings.get(name)
        value = value.removeprefix("$").split(".")[-1] if isinstance(value, str) else value
        if value not in NUMBERS:
            raise NotExpressibleError(f"it turns values into {value}")


def in_words(fields: Mapping[str, Any]) -> str:
    """Return fields and their values on one line."""
    return ", ".join(f"{name} {_value(value)}" for name, value in fields.items()) or "nothing to declare"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_value(item) for item in value) + ")"
    return str(value)
