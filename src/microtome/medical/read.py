"""Files → `Image`, and reference masks on an image's grid.

What a file is, is decided by its content. Every failure is a `MicrotomeError` that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from microtome.errors import DataError, GeometryError, LabelError, ReadError
from microtome.medical.grid import on_grid, same_grid, size_text
from microtome.medical.readers import arrays, dicom, itk, nifti, raster
from microtome.medical.readers.elements import split_series
from microtome.medical.readers.kind import Kind, is_dicom, kind_of
from microtome.types import Array, Further, Image

ROUNDING = 0.01  # of a label: what float32 and a slope make of whole numbers stays below, a probability does not
ROUNDED = f"the mask holds values up to {ROUNDING} beside whole numbers: they were rounded."
LARGEST_LABEL = 1 << 24  # float32 does not hold every whole number beyond
WHITE = (255, 65535)  # what drawing programs write for "inside"


def read_image(paths: Sequence[Path], index: int | None = None) -> Image:
    """Read the image of one case.

    Args:
        paths: one file; the slices of one DICOM series, or the folder that holds them; or one file per channel, all on
            one grid.
        index: position within an npz file, which counts through its train, val and test images.

    Returns:
        Pictures as (C, H, W) without affine; volumes as (C, I, J, K) with their affine (None for npz volumes).

    Raises:
        ReadError: a file is missing, truncated, or not an image.
        MissingExtraError: compressed in a way that needs a package that is not installed.
        GeometryError: slices that make no even stack, or channels on different grids.
        DataError: NaN or infinite values, or several series in one folder.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1 and files[0].is_dir():
        files = series_files(files[0])
        return _finite(dicom.read(files), files[0].parent)
    if not files:
        raise ReadError("A case has no image files.", "Check the cohort.")
    kinds: list[Kind] = [kind_of(path) for path in files]
    if kinds[0] == "dicom" and len(set(kinds)) == 1:
        return _finite(dicom.read(files), files[0])
    images = [_finite(_read_file(path, kind, index), path) for path, kind in zip(files, kinds, strict=True)]
    return _channels(images, files)


def read_mask(path: Path, image: Image | None) -> Array:
    """Read a reference segmentation on the image's grid.

    A mask of two values, 0 and 255 (or 65535), is 0 and 1. A volume whose axes are only flipped or swapped against the
    image's is turned to the image's axes; nothing is resampled. Without an image the mask is read as it is.

    Returns:
        Integer labels of the image's spatial shape.

    Raises:
        ReadError: missing, truncated, or several channels.
        GeometryError: another shape, or another place in space.
        LabelError: values that are not whole numbers, or negative.
    """
    return mask_and_notes(path, image)[0]


def with_further(image: Image, inputs: Mapping[str, Further]) -> Image:
    """Read what a network takes beside an image, on its grid. Raises what `read_image` and `read_mask` raise."""
    if not inputs:
        return image
    notes, found = list(image.notes), {}
    for name, one in inputs.items():
        if one.labels is not None:
            found[name], more = mask_and_notes(one.labels, image)
        elif one.images:
            other = on_grid(read_image(one.images), image, one.images[0])
            found[name], more = other.array, other.notes
        else:
            found[name], more = np.asarray(one.numbers, np.float32), ()
        notes += more
    return replace(image, inputs=found, notes=tuple(dict.fromkeys(notes)))


def mask_and_notes(path: Path, image: Image | None) -> tuple[Array, tuple[str, ...]]:
    """As `read_mask`, with what had to be assumed or done to read it, without names of files.

    Raises:
        DataError: as `read_mask`.
    """
    path = Path(path)
    kind: Kind = "dicom" if path.is_dir() else kind_of(path)
    if kind == "picture":
        mask = _finite(Image(raster.read_labels(path)[None]), path)
    else:
        mask = _finite(dicom.read(series_files(path)) if path.is_dir() else _read_file(path, kind, None), path)
    if mask.array.shape[0] != 1:
        raise ReadError(f"{path} has {mask.array.shape[0]} channels, a mask has one.", "Merge them into one label map.")
    return _whole((mask if image is None else on_grid(mask, image, path)).array[0], path)


def series_files(folder: Path) -> list[Path]:
    """The files of the one DICOM series in a folder; other files are passed over.

    Raises:
        ReadError: no DICOM images.
        DataError: more than one series.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and is_dicom(p))
    series, _ = split_series(files)
    if not series:
        raise ReadError(f"{folder} holds no DICOM images.", "Name a file, or a folder with the slices of one series.")
    if len(series) > 1:
        sizes = ", ".join(str(len(one)) for one in series)
        raise DataError(f"{folder} holds {len(series)} series (of {sizes} files).", "Give each series its own folder.")
    return series[0]


def _read_file(path: Path, kind: Kind, index: int | None) -> Image:
    if kind == "npz":
        if index is None:
            raise ReadError(f"{path} holds many images.", "Read it as a cohort, with format 'medmnist'.")
        return arrays.read(path, index)
    if kind == "nifti":
        return nifti.read(path)
    if kind in itk.DRIVERS:
        return itk.read(path, kind)
    return raster.read(path) if kind == "picture" else dicom.read([path])


def _channels(images: list[Image], files: list[Path]) -> Image:
    """Several files as the channels of one image."""
    first = images[0]
    if len(images) == 1:
        return first
    for image, path in zip(images, files, strict=True):
        if not same_grid(image, first):
            raise GeometryError(
                f"{path} ({size_text(image.spatial)}) lies on another grid than {files[0]} "
                f"({size_text(first.spatial)}).",
                "Resample the channels to one grid first.",
            )
    notes = tuple(dict.fromkeys(note for image in images for note in image.notes))
    return replace(first, array=np.concatenate([image.array for image in images]), notes=notes)


def _finite(image: Image, path: Path) -> Image:
    array = image.array
    if array.size == 0:
        raise ReadError(f"{path} holds no values: its size is {size_text(image.spatial)}.", "Leave it out.")
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(f"{path} holds {count:,} values that are NaN or infinite.", "Replace them first.")
    return image


def _whole(labels: Array, path: Path) -> tuple[Array, tuple[str, ...]]:
    """Labels as integers, and what had to be done for it."""
    notes: tuple[str, ...] = ()
    if labels.dtype.kind == "f":
        whole = np.rint(labels)
        off = float(np.abs(labels - whole).max())
        if off > ROUNDING:
            raise LabelError(
                f"{path} holds values that are not whole numbers: one is {off:.2g} off.", "Masks hold label numbers."
            )
        if labels.any() and not whole.any():
            raise LabelError(f"{path} holds nothing but values near 0.", "Store the label numbers, 0, 1, 2, …")
        notes = (ROUNDED,) if off else ()
        labels = whole
    top = int(labels.max())
    if int(labels.min()) < 0:
        raise LabelError(f"{path} holds negative labels.", "Labels count from 0, the background.")
    if top > LARGEST_LABEL:
        raise LabelError(f"{path} holds values up to {top:.3g}, which are no labels.", "Masks hold label numbers.")
    if top in WHITE and not ((labels != 0) & (labels != top)).any():
        labels, top = labels == top, 1
    return labels.astype(np.uint8 if top < 256 else np.int32), notes
