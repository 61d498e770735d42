"""Image and mask folders: `images/` and `masks/`, paired by name, with or without train, val and test above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.overlapping import labels_beside
from microtome.medical.formats.pairing import Pairs, bases, plain
from microtome.medical.formats.patients import FEW_FOLDERS, PatientsInNames
from microtome.medical.formats.table import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    PatientOf,
    Row,
    Table,
    by_stem,
    count_of,
    image_files,
    listing,
    no_image,
    split_folders,
    subfolder,
    unread_hint,
)
from microtome.medical.readers.detached import without_voxel_files
from microtome.medical.readers.kind import is_dicom, suffix_of

NAME = "image_masks"
LOOKS_LIKE = "a folder images (or imgs, image) beside a folder masks (or labels, mask, label)"

IMAGES = ("images", "imgs", "image", "img")
MASKS = ("masks", "labels", "mask", "label", "segmentations", "segmentation", "annotations", "groundtruth", "gt")


def matches(path: Path) -> bool:
    """An image folder beside a mask folder, directly or below train, val or test."""
    return path.is_dir() and any(
        subfolder(folder, IMAGES) and subfolder(folder, MASKS) for _, folder in split_folders(path)
    )


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image that has a mask of its name, or of its name and a word such as `_mask` or `_seg`.

    An image may be a folder with the slices of one DICOM series. The same folders may lie in both `images` and `masks`:
    train, val and test are the split, others are patients.
    Class names come from `dataset.json` if there is one.

    Raises:
        ReadError: a mask without image.
        DataError: a folder is missing, two files have one stem, or nothing pairs up.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", f"Wanted: {LOOKS_LIKE}.")
    found: list[Row] = []
    without: list[Path] = []
    names = PatientsInNames(path)
    for split, folder in split_folders(path):
        images, masks = subfolder(folder, IMAGES), subfolder(folder, MASKS)
        if images is None or masks is None:
            raise DataError(f"{folder} has no images and masks folders.", f"Wanted: {LOOKS_LIKE}.")
        pairs = pair(_entries(images), _entries(masks), images).masks
        below = {image.parent for image in pairs if _within(image, images) > 0}
        for image, its in pairs.items():
            part = SPLIT_NAMES.get(image.relative_to(images).parts[0].lower())
            rule = patient_of or (names.folder if image.parent in below and len(below) >= FEW_FOLDERS else names)
            if its:
                found.append(Row(rule(image), (image,), its[0], split=split or part, further_masks=tuple(its[1:])))
            else:
                without.append(image)
    if not found:
        folders = [entry for _, root in split_folders(path) for entry in listing(root)]
        hint = unread_hint(folders, "Name each mask like its image.")
        raise DataError(f"{path} has no image with a mask of the same name.", hint)
    if not all(row.split for row in found):
        found = [replace(row, split=None) for row in found]
    notes = (f"{count_of(len(without), 'image')} without mask left out.",) if without else ()
    told = frozenset({*without, path / "dataset.json"})
    return labels_beside(Table("segmentation", tuple(found), (), notes, told=told, patients=names.text), path)


def _within(image: Path, images: Path) -> int:
    """How many folders lie between, beside those of train, val and test."""
    return sum(name.lower() not in SPLIT_NAMES for name in image.parent.relative_to(images).parts)


def pair(images: Sequence[Path], masks: Sequence[Path], folder: Path) -> Pairs:
    """Images with their masks, if they have any. Folders that hold either are gone through.

    Args:
        images: files and folders.
        masks: likewise.
        folder: that of the images.

    Raises:
        ReadError: a mask without image.
        DataError: two files of one stem, or masks of two kinds for one image.
    """
    image_of, mask_of = by_stem(images), by_stem(masks)
    short = {plain(stem): stem for stem in image_of}
    pairs = Pairs({image: [] for image in image_of.values()})
    for stem, mask in mask_of.items():
        name, word = _image_stem(stem, image_of, short)
        if name is None:
            raise no_image("mask", mask, folder)
        image = image_of[name]
        if _is_plain_folder(image) and _is_plain_folder(mask):
            inner = pair(_entries(image), _entries(mask), image)
            pairs.masks |= inner.masks
            pairs.words |= inner.words
            del pairs.masks[image]
        else:
            pairs.add(image, mask, word)
    return pairs


def _is_plain_folder(entry: Path) -> bool:
    """A folder of images, or of folders of images, that are no slices of a DICOM series."""
    if not entry.is_dir():
        return False
    files = image_files(entry)
    return not is_dicom(files[0]) if files else any(_is_plain_folder(e) for e in listing(entry))


def _entries(folder: Path) -> list[Path]:
    entries = [entry for entry in listing(folder) if entry.is_dir() or suffix_of(entry) in IMAGE_SUFFIXES]
    return without_voxel_files(entries)


def _image_stem(stem: str, images: dict[str, Path], short: dict[str, str]) -> tuple[str | None, str]:
    """The stem of a mask's image, and what the mask is called beside that."""
    if stem in images:
        return stem, ""
    for base, word in bases(stem):
        if base in images:
            return base, word
        if base in short:
            return short[base], word
    return short.get(stem), ""
