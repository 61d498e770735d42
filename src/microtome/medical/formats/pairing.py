"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from microtome.errors import DataError
from microtome.medical.readers.kind import stem_of

WORDS = (
    "masks?|segs?|segmentations?|labels?|gts?|ground[ _-]?truths?|annotations?|annos?|annot|contours?|rois?|lesions?|"
    "manual|delineations?|target"
)
ENDING = re.compile(rf"(?P<base>.+?)[\s_.-]+(?P<word>{WORDS})(?:[\s_.-]*\(?(?P<number>\d{{1,3}})\)?)?", re.IGNORECASE)
OPENING = re.compile(rf"(?P<word>{WORDS})[\s_.-]+(?P<base>.+)", re.IGNORECASE)
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
    pairs = Pairs({file: [] for file in files if file not in owner})
    for mask in sorted(owner):
        image, word = owner[mask]
        if image in pairs.masks:
            pairs.add(image, mask, word)
        else:  # the mask of what is a mask itself
            pairs.masks[mask] = []
    return pairs


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
