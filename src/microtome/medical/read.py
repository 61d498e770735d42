"""Files → `Image`, and reference masks on an image's grid.

What a file is, is decided by its content. Every failure is a `MicrotomeError` that names the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from microtome.errors import DataError, GeometryError, LabelError, ReadError
from microtome.medical.readers import arrays, dicom, nifti, raster
from microtome.medical.readers.elements import split_series
from microtome.medical.readers.kind import Kind, is_dicom, kind_of
from microtome.types import Array, Image

GRID_TOLERANCE = 0.1  # voxels, at the corners: rounding in headers stays far below, half a voxel is a real shift
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
    path = Path(path)
    kind: Kind = "dicom" if path.is_dir() else kind_of(path)
    if kind == "picture":
        mask = Image(raster.read_labels(path)[None])
    else:
        mask = _finite(dicom.read(series_files(path)) if path.is_dir() else _read_file(path, kind, None), path)
    if mask.array.shape[0] != 1:
        raise ReadError(f"{path} has {mask.array.shape[0]} channels, a mask has one.", "Merge them into one label map.")
    labels = (mask if image is None else _on_grid(mask, image, path)).array[0]
    return _whole(labels, path)


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
    return raster.read(path) if kind == "picture" else dicom.read([path])


def _channels(images: list[Image], files: list[Path]) -> Image:
    """Several files as the channels of one image."""
    first = images[0]
    if len(images) == 1:
        return first
    for image, path in zip(images, files, strict=True):
        if image.spatial != first.spatial or not _same_place(image, first):
            raise GeometryError(
                f"{path} ({_size(image.spatial)}) lies on another grid than {files[0]} ({_size(first.spatial)}).",
                "Resample the channels to one grid first.",
            )
    return Image(np.concatenate([image.array for image in images]), first.affine)


def _finite(image: Image, path: Path) -> Image:
    array = image.array
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(f"{path} holds {count:,} values that are NaN or infinite.", "Replace them first.")
    return image


def _on_grid(mask: Image, image: Image, path: Path) -> Image:
    if mask.affine is not None and image.affine is not None:
        mask = _turned(mask, image)
    if mask.spatial != image.spatial:
        raise GeometryError(
            f"{path} has the shape {_size(mask.spatial)}, its image {_size(image.spatial)}.",
            "Mask and image must have the same grid.",
        )
    if not _same_place(mask, image):
        raise GeometryError(
            f"{path} lies elsewhere than its image: their affines differ by {_shift(mask, image):.2f} mm.",
            "Mask and image must have the same grid.",
        )
    return mask


def _turned(mask: Image, image: Image) -> Image:
    """The mask with its axes in the order and direction of the image's."""
    start, end = nibabel.io_orientation(mask.affine), nibabel.io_orientation(image.affine)
    turn = nibabel.orientations.ornt_transform(start, end)
    if np.isnan(turn).any() or (turn == [[0, 1], [1, 1], [2, 1]]).all():
        return mask
    affine = mask.affine @ nibabel.orientations.inv_ornt_aff(turn, mask.spatial)
    return Image(nibabel.orientations.apply_orientation(mask.array[0], turn)[None], affine)


def _same_place(one: Image, other: Image) -> bool:
    """Whether two grids of the same shape lie in the same place; a picture has no place and fits anywhere."""
    if one.affine is None or other.affine is None:
        return True
    return _shift(one, other) <= GRID_TOLERANCE * min(other.spacing)


def _shift(one: Image, other: Image) -> float:
    """The largest distance in mm between the same corners of two grids."""
    top = np.array(other.spatial) - 1.0
    corners = np.array([[*(top * bits), 1.0] for bits in np.ndindex(2, 2, 2)])
    difference = np.subtract(one.affine, other.affine)  # type: ignore[arg-type]
    return float(np.linalg.norm(corners @ difference.T, axis=1).max())


def _whole(labels: Array, path: Path) -> Array:
    if labels.dtype.kind == "f":
        whole = np.rint(labels)
        if not np.array_equal(whole, labels):
            raise LabelError(f"{path} holds values that are not whole numbers.", "Masks hold label numbers.")
        labels = whole
    top = int(labels.max())
    if int(labels.min()) < 0:
        raise LabelError(f"{path} holds negative labels.", "Labels count from 0, the background.")
    if top in WHITE and not ((labels != 0) & (labels != top)).any():
        labels, top = labels == top, 1
    return labels.astype(np.uint8 if top < 256 else np.int32)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)
