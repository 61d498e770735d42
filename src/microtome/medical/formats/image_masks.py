"""Image and mask folders: `images/` and `masks/`, paired by name, with or without train, val and test above them."""

from __future__ import annotations

from pathlib import Path

from microtome.errors import DataError, ReadError
from microtome.medical.formats.overlapping import with_labels
from microtome.medical.formats.pairing import Pairs, bases, plain
from microtome.medical.formats.patients import PatientsInNames
from microtome.medical.formats.table import (
    IMAGE_SUFFIXES,
    PatientOf,
    Row,
    Table,
    by_stem,
    count_of,
    has_image,
    image_files,
    listing,
    split_folders,
    subfolder,
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

    An image may be a folder with the slices of one DICOM series. The same folders may lie in both `images` and `masks`.
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
        for image, its in pair(images, masks).masks.items():
            rule = patient_of or (names if image.parent == images else names.folder)
            if its:
                found.append(Row(rule(image), (image,), its[0], split=split, further_masks=tuple(its[1:])))
            else:
                without.append(image)
    if not found:
        raise DataError(f"{path} has no image with a mask of the same name.", "Name each mask like its image.")
    notes = (f"{count_of(len(without), 'image')} without mask left out.",) if without else ()
    named = path / "dataset.json"
    told = frozenset(without) | ({named} if named.is_file() else set())
    table = Table("segmentation", tuple(found), notes=notes, told=told, patients=names.text)
    return with_labels(table, named) if named.is_file() else table


def pair(images: Path, masks: Path) -> Pairs:
    """Images with their masks, if they have any.

    Raises:
        ReadError: a mask without image.
        DataError: two files of one stem, or masks of two kinds for one image.
    """
    image_of, mask_of = by_stem(_entries(images)), by_stem(_entries(masks))
    short = {plain(stem): stem for stem in image_of}
    pairs = Pairs({image: [] for image in image_of.values()})
    inner: list[Pairs] = []
    for stem, mask in mask_of.items():
        name, word = _image_stem(stem, image_of, short)
        if name is None:
            raise ReadError(f"The mask {mask} has no image in {images}.", _why(images, stem))
        image = image_of[name]
        if _is_plain_folder(image) and _is_plain_folder(mask):
            inner.append(pair(image, mask))
            del pairs.masks[image]
        else:
            pairs.add(image, mask, word)
    for one in inner:
        pairs.masks.update(one.masks)
        pairs.words.update(one.words)
    return pairs


def _why(images: Path, stem: str) -> str:
    unread = [entry for entry in listing(images) if entry.is_file() and entry.name.startswith(f"{stem}.")]
    if unread:
        return f"{unread[0].name} lies there, but it is of a kind that is not read here: convert it."
    return "Add the image or remove the mask."


def _is_plain_folder(entry: Path) -> bool:
    """A folder of images that are no slices of a DICOM series."""
    return entry.is_dir() and has_image(entry) and not is_dicom(image_files(entry)[0])


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
