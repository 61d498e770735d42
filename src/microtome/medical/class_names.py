"""Which class of a network each class of a cohort is: by name where both name theirs, or else by number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from microtome.errors import LabelError
from microtome.medical.cohort import Cohort
from microtome.types import Case

# A name that says no more than a number.
GENERIC = re.compile(r"(?:label|class|channel|structure|category|output)?(\d{1,9})")
# Between letters, or between a letter and a digit: `Left_Kidney` and `left kidney` are one, `grade 1-2` stays.
SEPARATORS = re.compile(r"(?<=[^\W\d_])[\s_-]+(?=[^\W_])|(?<=\d)[\s_-]+(?=[^\W\d_])")
SINGLE = frozenset({"foreground", "fg", "object", "mask", "roi", "positive"})  # says no more than "the only one"
BACKGROUND = frozenset({"background", "bg", "unlabeled", "unlabelled", "clearlabel", "outside"})

HINT = (
    "Name them alike: in the cohort's dataset.json (where several numbers may have one name), folders or manifest, or "
    "under 'classes' of the --pipeline."
)


@dataclass(frozen=True)
class Match:
    """Number of a class in the cohort → its number in the network, and how that was told: by `name` or `number`."""

    numbers: Mapping[int, int]
    by: str


def matched(cohort: Cohort, network: Sequence[str], *, maps: bool) -> Cohort:
    """The same cohort with the network's classes: masks and labels then hold the network's numbers.

    Args:
        cohort: as it was read.
        network: the network's class names; with `maps` the first is the background.
        maps: whether the classes are structures in masks, not classes of whole images.

    Raises:
        LabelError: a class of the cohort that is none of the network's.
    """
    if not cohort.classes or not network:
        return cohort
    match = match_classes(cohort.classes, network, unnamed=cohort.unnamed, background=maps)
    notes = (*cohort.notes, *_notes(cohort, network, match, maps))
    found = replace(cohort, classes=tuple(network), unnamed=frozenset(), notes=notes)
    if maps:
        return replace(found, numbers=dict(match.numbers))
    return replace(found, cases=tuple(_relabelled(case, match.numbers) for case in cohort.cases))


def match_classes(
    cohort: Sequence[str], network: Sequence[str], *, unnamed: Collection[int] = (), background: bool
) -> Match:
    """Find the network's number of each class of a cohort.

    Names are the same if they differ in upper and lower case, spaces, hyphens and underscores only; so are `label 2`,
    `class 2` and `2`. Where one side says nothing but numbers, numbers count.

    Args:
        cohort: class names in the order of their numbers.
        network: likewise.
        unnamed: numbers of the cohort's classes that nobody named.
        background: whether the first class of both is the background, whatever it is called.

    Raises:
        LabelError: a class of the cohort that is none of the network's.
    """
    own = [_key(name, background, len(cohort)) for name in cohort]
    theirs = [_key(name, background, len(network)) for name in network]
    numbers = {k: found for k in range(len(cohort)) if (found := _same(cohort[k], own[k], network, theirs)) is not None}
    if background and 0 not in numbers and 0 not in numbers.values():
        numbers[0] = 0
    first = int(background)
    nobody = set(unnamed) >= set(range(first, len(cohort)))
    unseen = set() if nobody else set(unnamed)  # gaps between named numbers: told by the mask that holds one
    ours, others = (all(isinstance(key, int) for key in keys[first:]) for keys in (own, theirs))
    counted = _by_number(theirs, others, first)
    missing = [k for k in range(len(cohort)) if k not in numbers]
    if not set(missing) - unseen:
        return Match(counted | numbers if nobody else numbers, "name")
    if nobody or ours != others:
        missing = [k for k in range(len(cohort)) if k not in counted]
        if not set(missing) - unseen:
            # Who names nothing may have looked at some masks only: others may hold more of the network's numbers.
            return Match({k: v for k, v in counted.items() if nobody or k < len(cohort)}, "number")
    strange = next(k for k in missing if k not in unseen)
    raise LabelError(
        f"The classes of the cohort and of the network differ: the cohort has {_listed(cohort, unseen)}; the network "
        f"has {_listed(network, ())}. '{cohort[strange]}' is none of the network's.",
        HINT,
    )


def _same(name: str, key: str | int, network: Sequence[str], theirs: Sequence[str | int]) -> int | None:
    """The only class of the network with a name, or with one that differs in its spelling only."""
    if network.count(name) == 1:
        return network.index(name)
    return theirs.index(key) if theirs.count(key) == 1 else None


def _by_number(network: Sequence[str | int], nameless: bool, first: int) -> dict[int, int]:
    """The network's number of each number; where the network's names are numbers, they say which is which."""
    said = {key: k for k, key in enumerate(network) if isinstance(key, int) and k >= first} if nameless else {}
    if len(said) < len(network) - first:
        said = {k: k for k in range(len(network))}
    if first:
        said[0] = 0
    return said


def _key(name: str, background: bool, count: int) -> str | int:
    """What two spellings of a name have in common; a number where the name says nothing else."""
    plain = SEPARATORS.sub("", unicodedata.normalize("NFKC", name).casefold().strip(" _\t"))
    if background and plain in BACKGROUND:
        return "background"
    if background and count == 2 and plain in SINGLE:
        return 1
    found = GENERIC.fullmatch(plain)
    return int(found.group(1)) if found else plain


def _listed(names: Sequence[str], without: Collection[int]) -> str:
    return ", ".join(f"{k} {name}" for k, name in enumerate(names) if k not in without)


def _relabelled(case: Case, numbers: Mapping[int, int]) -> Case:
    return replace(case, label=numbers[case.label]) if isinstance(case.label, int) else case


def _notes(cohort: Cohort, network: Sequence[str], match: Match, maps: bool) -> list[str]:
    """Say what is not plain: numbers that were translated, names that were not compared, classes without reference."""
    there = range(int(maps), len(cohort.classes))
    pairs = [(k, match.numbers[k]) for k in there if k in match.numbers]
    notes = []
    if match.by == "number" and len(network) > 1 + maps:
        told = ", ".join(f"{cohort.classes[k]} is {network[number]}" for k, number in pairs)
        notes.append(f"Classes were matched by number, since cohort or network does not name them: {told}.")
    elif any(k != number for k, number in pairs):
        told = ", ".join(f"{k} → {number} ({network[number]})" for k, number in pairs if k != number)
        notes.append(f"Classes were matched by name; their numbers differ between cohort and network: {told}.")
    absent = [name for k, name in enumerate(network) if k not in match.numbers.values() and not (maps and k == 0)]
    if absent:
        notes.append(f"The cohort has no class {', '.join(absent)}, which the network knows.")
    return notes
