"""Images that a network made → files: NIfTI on the grid of the image, TIFF for pictures; float32 in both."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image

from microtome.errors import OutputError
from microtome.medical.readers.kind import suffix_of
from microtome.medical.write import LEVEL, header_of, whole_file
from microtome.types import Array, Image


def write_image(values: Array, source: Image, path: Path) -> None:
    """Write an image, whole or not at all.

    Args:
        values: (C, H, W) or (C, I, J, K).
        source: the image that it was made of, which says where it lies. The voxels are not looked at.
        path: ends in `.nii.gz` or `.nii` for volumes, whose channels are the fourth axis, and in `.tif` for pictures,
            whose channels are pages.

    Raises:
        OutputError: another suffix, or more voxels along an axis than NIfTI-1 can hold (32767).
        OSError: the place cannot be written; `package.writing` makes a sentence of it.
    """
    picture = values.ndim == 3
    suffix, wanted = suffix_of(path), (".tif", ".tiff") if picture else (".nii.gz", ".nii")
    if suffix not in wanted:
        raise OutputError(f"{path}: an image of {values.ndim - 1} axes is no {suffix} file.", f"Use {wanted[0]}.")
    values = np.asarray(values, np.float32)
    with whole_file(path) as file:
        if picture:
            _tiff(values, file)
        elif suffix == ".nii":
            _nifti(values, source, path, file)
        else:
            with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed:
                _nifti(values, source, path, packed)


def _tiff(values: Array, file: IO[bytes]) -> None:
    first, *others = (PIL.Image.fromarray(np.ascontiguousarray(page)) for page in values)
    first.save(file, format="tiff", save_all=bool(others), append_images=others)


def _nifti(values: Array, source: Image, path: Path, file: IO[bytes] | gzip.GzipFile) -> None:
    """The header, and the voxels with the first axis fastest, channel after channel."""
    shape = values.shape[1:] if len(values) == 1 else (*values.shape[1:], len(values))
    file.write(header_of(shape, values.dtype, source, path))
    for channel in values:
        file.write(np.ascontiguousarray(channel.T).reshape(-1).data)
