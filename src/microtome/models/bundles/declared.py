"""What a MONAI bundle says of itself, as data: references followed, expressions worked out, no code run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microtome.models.bundles.expressions import REFERENCE, UnknownError, evaluate, is_open

Settings = Mapping[str, Any]
DEEPEST = 24  # levels of lists and tables in a config, and of references that point to references
# Who takes an entry, and as which argument: where there is one of them alone, this is what counts.
USED = {
    "preprocessing": ("Dataset", "transform"),
    "inferer": ("Evaluator", "inferer"),
    "postprocessing": ("Evaluator", "postprocessing"),
}
LABELS = frozenset(("label", "labels", "seg", "segmentation", "mask", "gt"))  # keys of references


@dataclass(frozen=True)
class Declared:
    """What a bundle says of itself.

    Attributes:
        config: the one that defines the network.
        image: metadata of its first input.
        prediction: metadata of its first output.
        outputs: the names of all its outputs.
        others: its further configs, such as those of training, by file name.
    """

    config: Mapping[str, Any]
    image: Mapping[str, Any]
    prediction: Mapping[str, Any]
    outputs: tuple[str, ...] = ("pred",)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def plain(self, value: Any, depth: int = DEEPEST) -> Any:
        """Replace references by what they point to, and expressions by what they come to; both stay where unknown."""
        if depth == 0:
            return value
        if isinstance(value, Mapping):
            return {key: self.plain(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, depth - 1) for item in value]
        if not isinstance(value, str):
            return value
        try:
            if reference := REFERENCE.fullmatch(value):
                return self._entry(reference[1], depth)
            if value.startswith("$"):
                return evaluate(value[1:], lambda name: self._entry(name, depth))
        except UnknownError:
            pass
        return value

    def _entry(self, name: str, depth: int) -> Any:
        """What a reference points to."""
        if name not in self._found:
            found: Any = self.config
            for part in re.split(r"::|#", name):
                if isinstance(found, list) and part.isdigit() and int(part) < len(found):
                    found = found[int(part)]
                elif isinstance(found, Mapping) and part in found:
                    found = found[part]
                else:
                    raise UnknownError(name)
            self._found[name] = f"@{name}"  # points to itself, until it is known
            self._found[name] = self.plain(found, depth - 1)
        return self._found[name]

    def entry(self, *names: str) -> Any:
        """Return what the evaluator or the data set takes, or else the first entry there is; None if there is none.

        Args:
            names: of an entry of the config or of its `validate` part, in this order.
        """
        kind, argument = USED[names[0]]
        users = [item for item in tables(self.config) if kind_of(item).endswith(kind) and item.get(argument)]
        if len(users) == 1:
            found = self.plain(users[0][argument])
            if not is_open(found) or isinstance(found, Mapping):
                return found
        validate = self.config.get("validate")
        for part in (self.config, validate if isinstance(validate, Mapping) else {}):
            for name in names:
                if part.get(name):
                    return self.plain(part[name])
        return None

    def transforms(self, *names: str) -> list[Settings] | None:
        """Return the transforms of the first entry there is, one after the other; None if that is no plain list."""
        content = self.entry(*names)
        if isinstance(content, Mapping):
            content = content.get("transforms", []) if kind_of(content) in ("Compose", "?") else [content]
        return list(_flat(content)) if isinstance(content, list) else None

    def mentioned(self) -> Iterator[tuple[str, Settings]]:
        """Every transform of references that any config has somewhere, with the name of its file; as it is written."""
        for name, config in (self.others or {"its config": self.config}).items():
            for item in tables(config):
                keys = item.get("keys", ())
                keys = set(keys if isinstance(keys, list) else [keys] if isinstance(keys, str) else ())
                if keys and keys <= LABELS:
                    yield name, item


@dataclass(frozen=True)
class Step:
    """What became of one step that a model declares.

    Attributes:
        stage: `preprocessing`, `inferer` or `postprocessing`.
        name: the step's, as it is declared.
        verdict: `translated` into fields of the pipeline, known to be `harmless`, or `noted`: not done, or not quite.
        what: the fields, why it is harmless, or the notes.
    """

    stage: str
    name: str
    verdict: str
    what: str


def kind_of(item: Settings) -> str:
    """Return the name of a transform or inferer without module and without the suffix of its dictionary twin."""
    name = name_of(item)
    if name.endswith(("Pad", "Foreground")):  # no suffix: the words end so
        return name
    return re.sub(r"(?<=[a-z0-9])(Dict|D|d)$", "", name)


def name_of(item: Settings) -> str:
    """Return the name of a transform or inferer as the bundle has it, without its module."""
    return str(item.get("_target_", "?")).rpartition(".")[2]


def disabled(item: Settings) -> bool | None:
    """Whether MONAI leaves a transform out; None where that cannot be told."""
    value = item.get("_disabled_", False)
    if isinstance(value, str):
        return None if is_open(value) else value.strip().lower() == "true"
    return bool(value)


def keys_of(item: Settings) -> tuple[str, ...]:
    """Return the keys that a transform is for; none where it does not say, as one of arrays."""
    keys = item.get("keys", ())
    return tuple(str(key) for key in keys) if isinstance(keys, list | tuple) else (str(keys),)


def at_key(item: Settings, keys: Sequence[str]) -> Settings:
    """Return the settings for one of the given keys, where a transform for several has lists of them."""
    own = keys_of(item)
    place = next((place for place, key in enumerate(own) if key in keys), None)
    if place is None or not isinstance(item.get("keys"), list | tuple):
        return item
    one = {}
    for name, value in item.items():
        single = name not in SEVERAL and isinstance(value, list | tuple) and len(value) == len(own)
        one[name] = value[place] if single else value
    return one


# Settings that hold a list for each key anyway.
SEVERAL = frozenset(
    (
        *("keys", "pixdim", "spatial_size", "roi_size", "k", "k_divisible", "margin", "indices", "subtrahend"),
        *("divisor", "applied_labels", "orig_labels", "target_labels", "channel_indices", "transform"),
    )
)


def per_axis(value: Any, dims: int) -> list[float] | None:
    """Return one positive number per axis; None if that is not what is given."""
    values = [value] * dims if isinstance(value, int | float) else value
    fits = isinstance(values, list | tuple) and len(values) == dims
    return list(values) if fits and all(is_number(n) and n > 0 for n in values) else None


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sizes_of(shape: Any) -> list[int | str] | None:
    """Return a spatial shape of the metadata, with sizes that are written as text as numbers; None if it is none."""
    if not isinstance(shape, list) or not all(isinstance(n, int | str) for n in shape):
        return None
    return [int(n) if isinstance(n, str) and n.strip().isdigit() else n for n in shape]


def multiple_of(size: object) -> int:
    """Return what a size must be a multiple of by the metadata: 8 for `8*n`, 32 for powers of two, 1 for `*` and 96."""
    text = str(size).replace(" ", "")
    if "2**" in text:
        return 32
    factor = re.fullmatch(r"(\d+)\*n|n\*(\d+)", text)
    return int(factor[1] or factor[2]) if factor else 1


def is_data(value: Any) -> bool:
    """Whether a value is known, not an expression that would have to be run."""
    if isinstance(value, Mapping):
        return not is_open(value) and all(is_data(item) for item in value.values())
    if isinstance(value, tuple | list):
        return all(is_data(item) for item in value)
    return not is_open(value)


def _flat(items: Sequence[Any]) -> Iterator[Settings]:
    """Transforms, with those of inner lists in their place."""
    for item in items:
        table = item if isinstance(item, Mapping) else {"_target_": str(item)}
        inner = table.get("transforms")
        if kind_of(table) == "Compose" and isinstance(inner, list) and disabled(table) is False:
            yield from _flat(inner)
        else:
            yield table


def tables(value: Any) -> Iterator[Settings]:
    """Every entry of a config that is to be made into an object, wherever it stands."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value
        for item in value.values():
            yield from tables(item)
    elif isinstance(value, list):
        for item in value:
            yield from tables(item)
