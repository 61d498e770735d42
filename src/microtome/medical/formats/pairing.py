"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image

from microtome.errors import DataError
from microtome.medical.readers.kind import SUFFIXES, stem_of, suffix_of

WORDS = (
    "masks?|segs?|segmentations?|labels?|gts?|ground[ _-]?truths?|annotations?|annos?|annot|contours?|rois?|lesions?|"
    "manual|delineations?|target"
)
ENDING = re.compile(rf"(?P<base>.+?)[\s_.-]+(?P<word>{WORDS})(?:[\s_.-]*\(?(?P<number>\d{{1,3}})\)?)?", re.IGNORECASE)
OPENING = re.compile(rf"(?P<word>{WORDS})[\s_.-]+(?P<base>.+)", re.IGNORECASE)
LOOK = 8  # couples of pictures of one stem that are looked at
FEW_VALUES = 16  # of a picture that is a mask
NUMBERED = re.compile(r"(.+?)[\s_.-]+\d{1,3}")  # `x_1_mask`, `x_2_mask` of `x`
IMAGE_ENDING = re.compile(r"(.+?)[\s_.-]+(?:images?|imgs?|im|scan|orig|original)", re.IGNORECASE)
IMAGE_OPENING = re.compile(r"(?:images?|imgs?|im|scan)[\s_.-]+(.+)", re.IGNORECASE)


@dataclass
class Pairs:
    """What a folder holds.

    Attributes:
        masks: image → its masks, in the order of their names; empty for an image without one.
        words: image → what its masks are called.
    """

    masks: dict[Path, list[Path]] = field(default_factory=dict)
    words: dict[Path, str] = field(default_factory=dict)

    def add(self, image: Path, mask: Path, word: str) -> None:
        """Give an image a mask.

        Raises:
            DataError: it has one of another kind already.
        """
        if self.masks[image] and self.words[image] != word:
            raise DataError(
                f"{image} has two masks, {self.masks[image][0].name} and {mask.name}.",
                "Keep one; parts of one mask are called x_mask, x_mask_1, x_mask_2.",
            )
        self.masks[image].append(mask)
        self.words[image] = word


def masks_beside(files: Sequence[Path]) -> Pairs:
    """The images and masks of one folder. A file is a mask if its name is that of another and `_mask`, `-seg`, …

    Of two pictures that differ in their ending only, it is the one with a few values, if that is so for all couples.

    Raises:
        DataError: masks of two kinds for one image.
    """
    stems: dict[str, list[Path]] = {}
    for file in files:
        stems.setdefault(stem_of(file), []).append(file)
    owner: dict[Path, tuple[Path, str]] = {}
    for stem, same in stems.items():
        for base, word in bases(stem):
            images = [image for image in _named(base, stems) if image not in same]
            if images:
                owner.update(dict.fromkeys(same, (images[0], word)))
                break
    owner.update(_of_one_stem([same for same in stems.values() if len(same) == 2 and owner.keys().isdisjoint(same)]))
    pairs = Pairs({file: [] for file in files if file not in owner})
    for mask in sorted(owner):
        image, word = owner[mask]
        if image in pairs.masks:
            pairs.add(image, mask, word)
        else:  # the mask of what is a mask itself
            pairs.masks[mask] = []
    return pairs


def _of_one_stem(couples: Sequence[Sequence[Path]]) -> dict[Path, tuple[Path, str]]:
    """Masks that are called like their images but for the ending, such as `x.jpg` and `x.png`, with their images.

    Names do not tell this: some of the pictures are looked at. All of one ending must be masks, and no other.
    """
    pictures = [sorted(two, key=suffix_of) for two in couples]
    endings = {tuple(suffix_of(file) for file in two) for two in pictures}
    if len(endings) != 1 or {SUFFIXES.get(ending) for ending in next(iter(endings))} != {"picture"}:
        return {}
    looked = pictures[:: max(1, len(pictures) // LOOK)][:LOOK]
    marks = [{_is_mask(two[place]) for two in looked} for place in (0, 1)]
    if marks not in ([{True}, {False}], [{False}, {True}]):
        return {}
    place = marks.index({True})
    return {two[place]: (two[1 - place], "") for two in pictures}


def _is_mask(file: Path) -> bool:
    """Whether a picture holds a few gray values only, or a palette of a few colours."""
    try:
        with PIL.Image.open(file) as opened:
            colours = opened.getcolors(FEW_VALUES) if opened.mode in ("1", "L", "P") else None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return False
    return colours is not None


def bases(stem: str) -> Iterable[tuple[str, str]]:
    """The stems that the image of a mask may have, each with the word that made it a mask."""
    for pattern in (ENDING, OPENING):
        found = pattern.fullmatch(stem)
        if found:
            base, word = found.group("base"), found.group("word").lower()
            yield base, word
            numbered = NUMBERED.fullmatch(base)
            if numbered:
                yield numbered.group(1), word


def plain(stem: str) -> str:
    """The stem of an image without a word that says that it is one: `a_img` → `a`."""
    for pattern in (IMAGE_ENDING, IMAGE_OPENING):
        found = pattern.fullmatch(stem)
        if found:
            return found.group(1)
    return stem


def _named(base: str, stems: Mapping[str, list[Path]]) -> list[Path]:
    for stem in (base, f"{base}_image", f"{base}_img", f"image_{base}", f"img_{base}", f"{base}-image", f"{base}-img"):
        if stem in stems:
            return stems[stem]
    return []
