"""Image and mask folders: `images/` and `masks/`, paired by name, with or without train, val and test above them."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.table import (
    IMAGE_SUFFIXES,
    PatientOf,
    Row,
    Table,
    by_stem,
    count_of,
    label_names,
    listing,
    no_image,
    patient_in_name,
    split_folders,
    subfolder,
    unread_hint,
)
from microtome.medical.readers.detached import without_voxel_files
from microtome.medical.readers.kind import suffix_of

NAME = "image_masks"
LOOKS_LIKE = "a folder images (or imgs, image) beside a folder masks (or labels, mask, label)"

IMAGES = ("images", "imgs", "image")
MASKS = ("masks", "labels", "mask", "label", "segmentations")
MASK_ENDINGS = ("mask", "masks", "seg", "segmentation", "label", "labels", "gt")


def matches(path: Path) -> bool:
    """An image folder beside a mask folder, directly or below train, val or test."""
    return path.is_dir() and any(
        subfolder(folder, IMAGES) and subfolder(folder, MASKS) for _, folder in split_folders(path)
    )


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per image that has a mask of its name, or of its name and an ending such as `_mask` or `_seg`.

    An image may be a folder with the slices of one DICOM series. Class names come from `dataset.json` if there is one.

    Raises:
        ReadError: a mask without image.
        DataError: a folder is missing, two files have one stem, or nothing pairs up.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", f"Wanted: {LOOKS_LIKE}.")
    found: list[Row] = []
    unpaired = 0
    rule = patient_of or patient_in_name
    for split, folder in split_folders(path):
        images, masks = subfolder(folder, IMAGES), subfolder(folder, MASKS)
        if images is None or masks is None:
            raise DataError(f"{folder} has no images and masks folders.", f"Wanted: {LOOKS_LIKE}.")
        pairs, without = pair(images, masks)
        unpaired += without
        found += [Row(patient=rule(image), image=(image,), mask=mask, split=split) for image, mask in pairs]
    if not found:
        folders = [entry for _, root in split_folders(path) for entry in listing(root)]
        hint = unread_hint(folders, "Name each mask like its image.")
        raise DataError(f"{path} has no image with a mask of the same name.", hint)
    notes = (f"{count_of(unpaired, 'image')} without mask left out.",) if unpaired else ()
    named = path / "dataset.json"
    return Table("segmentation", tuple(found), label_names(named) if named.is_file() else (), notes)


def pair(images: Path, masks: Path) -> tuple[list[tuple[Path, Path]], int]:
    """Images with their masks, and the number of images that have none.

    Raises:
        ReadError: a mask without image.
        DataError: two files of one stem, or two masks of one image.
    """
    image_of, mask_of = by_stem(_entries(images)), by_stem(_entries(masks))
    paired: dict[str, Path] = {}
    for stem, mask in mask_of.items():
        name = _image_stem(stem, image_of)
        if name is None:
            raise no_image("mask", mask, images)
        if name in paired:
            raise DataError(f"{image_of[name]} has two masks, {paired[name].name} and {mask.name}.", "Keep one.")
        paired[name] = mask
    return [(image, paired[s]) for s, image in image_of.items() if s in paired], len(image_of) - len(paired)


def _entries(folder: Path) -> list[Path]:
    entries = [entry for entry in listing(folder) if entry.is_dir() or suffix_of(entry) in IMAGE_SUFFIXES]
    return without_voxel_files(entries)


def _image_stem(stem: str, images: dict[str, Path]) -> str | None:
    if stem in images:
        return stem
    for ending in MASK_ENDINGS:
        for joint in "_-.":
            name = stem.removesuffix(joint + ending)
            if name != stem and name in images:
                return name
    return None
