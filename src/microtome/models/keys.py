"""Which tensor of a file is which of a network: prefixes, wrappers, and norms that are stored in two ways."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

# What wrappers put between the names of modules: torch.compile, data parallel training, checkpointing.
WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
USUAL = ("", "model.", "net.", "network.")  # of several places that hold the whole network, these come first
# Weight norm and spectral norm as parametrizations, and as the hooks that they were before.
NORMS = (
    ("parametrizations.{}.original0", "{}_g"),
    ("parametrizations.{}.original1", "{}_v"),
    ("parametrizations.{}.original", "{}_orig"),
    ("parametrizations.{}.0._u", "{}_u"),
    ("parametrizations.{}.0._v", "{}_v"),
)


@dataclass(frozen=True)
class Matched:
    """A file's tensors under the network's names.

    Attributes:
        state: all that lies under the same prefix.
        outside: names, as in the file, of all else.
        parts: first names of the network's modules.
        notes: what the user should know.
    """

    state: dict[str, Tensor]
    outside: tuple[str, ...]
    parts: frozenset[str]
    notes: tuple[str, ...] = ()

    def belongs(self, name: str) -> bool:
        """Whether a tensor would lie in a module that the network has, or in one more of a sequence."""
        first = name.partition(".")[0]
        return first in self.parts or first.isdigit()


def match(state: Mapping[str, Tensor], expected: Iterable[str]) -> Matched:
    """Find the prefix under which a file holds a network, or which the network has and the file has not.

    Args:
        state: the file's tensors, by its names.
        expected: the network's names.
    """
    expected = tuple(expected)
    bare = _bare(state)
    forms = {form: name for name in expected for form in _other_forms(name)} | {name: name for name in expected}
    forms = {plain: forms[form] for plain, form in _bare(forms).items()}
    places, most = _prefixes(bare, forms)
    added, more = _prefixes(forms, bare)
    if more > most:  # a wrapper is left around the network itself
        notes: tuple[str, ...] = ()
        inner = {added[0] + name: original for name, original in bare.items()}
    else:
        prefix = min(places, key=lambda place: USUAL.index(place) if place in USUAL else len(USUAL))
        inner = {n.removeprefix(prefix): original for n, original in bare.items() if n.startswith(prefix)}
        notes = _ambiguous(places, prefix) if most else ()
    return Matched(
        {forms.get(name, name): state[original] for name, original in inner.items()},
        tuple(name for name in state if name not in set(inner.values())),
        frozenset(name.partition(".")[0] for name in forms),
        notes,
    )


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Return names by what they are without wrappers; as they are where that would make two the same."""
    names = list(names)
    bare = {WRAPPED.sub("", name): name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _prefixes(names: Iterable[str], others: Mapping[str, str]) -> tuple[list[str], int]:
    """Return the prefixes without which most names are among others, in their order, and how many those are."""
    counts: Counter[str] = Counter({"": 0})
    for name in names:
        for place in [0, *(dot.end() for dot in re.finditer(r"\.", name))]:
            counts[name[:place]] += name[place:] in others
    most = max(counts.values())
    return [prefix for prefix, count in counts.items() if count == most], most


def _ambiguous(places: list[str], prefix: str) -> tuple[str, ...]:
    if len(places) == 1:
        return ()
    others = ", ".join(place or "no prefix" for place in places if place != prefix)
    return (
        f"The weights file holds the network under {prefix or 'no prefix'} and under {others}: the first is taken.",
    )


def _other_forms(name: str) -> list[str]:
    """Return how a norm's tensor of this name is called where it is stored in the other way."""
    module, _, tensor = name.rpartition(".")
    forms = []
    for new, old in NORMS:
        pattern = re.escape(new).replace(r"\{\}", r"(\w+)")
        if found := re.fullmatch(rf"(.*\.|){pattern}", name):
            forms.append(found[1] + old.format(found[2]))
        ending = old.format("")
        if tensor.endswith(ending) and len(tensor) > len(ending):
            forms.append(f"{module}.".lstrip(".") + new.format(tensor.removesuffix(ending)))
    return forms
