"""Label maps → files: NIfTI on the grid of the image, PNG for pictures."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
import PIL.Image

from microtome.errors import OutputError
from microtome.medical.readers.kind import suffix_of
from microtome.types import Array, Image

SCANNER = 1  # NIfTI-1's code for coordinates of the scanner; 0 is for those that nobody knows
LONGEST = 32767  # voxels along an axis of a NIfTI-1 file
DATA = 352  # bytes before the voxels in a single NIfTI-1 file without extensions
LEVEL = 1  # of gzip and PNG: label maps are flat, and more effort saves little
TILE = 8  # voxels a side of what is turned at a time from C order to the order of NIfTI: stays in the first cache


def write_labels(labels: Array, source: Image, path: Path) -> None:
    """Write a label map, whole or not at all: it is written beside its place and moved there.

    Args:
        labels: uint8 or uint16, (H, W) or (I, J, K).
        source: the image that was segmented. The voxels are not looked at.
        path: ends in `.nii.gz` or `.nii` for volumes, and in `.png` for pictures, whose gray values are the label
            numbers. A volume from NIfTI hands on both forms, their codes and its unit as they are. Any other volume's
            affine becomes the sform, and the qform as far as one can say it (see `rigid`), in millimetres and with code
            1, or with code 0 if there is no affine.

    Raises:
        OutputError: another suffix, or more voxels along an axis than NIfTI-1 can hold (32767).
        OSError: the place cannot be written; `package.writing` makes a sentence of it.
    """
    suffix, wanted = suffix_of(path), (".png",) if labels.ndim == 2 else (".nii.gz", ".nii")
    if suffix not in wanted:
        raise OutputError(f"{path}: a label map of {labels.ndim} axes is no {suffix} file.", f"Use {wanted[0]}.")
    with whole_file(path) as file:
        if labels.ndim == 2:
            PIL.Image.fromarray(labels).save(file, format="png", compress_level=LEVEL)
        elif suffix == ".nii":
            file.write(header_of(labels.shape, labels.dtype, source, path))
            file.write(_turned(labels))
        else:
            with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed:
                packed.write(header_of(labels.shape, labels.dtype, source, path))
                packed.write(_turned(labels))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written beside its place, and move it there when it is whole."""
    part = path.with_name(f".{path.name}.partial")
    try:
        with part.open("w+b") as file:  # Pillow reads what it appends pages to
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def rigid(affine: Array) -> Array:
    """The affine without shear, since a qform knows none: what ITK makes of a DICOM series with a tilted gantry.

    The first two axes stay, the third becomes their normal; steps keep their length. Without shear nothing changes.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    first, second, third = affine[:3, :3].T
    along = first / steps[0]
    down = second - (second @ along) * along
    down /= np.linalg.norm(down)
    normal = np.cross(along, down)
    turned: Array = affine.copy()
    turned[:3, :3] = np.stack([along, down, normal if normal @ third >= 0 else -normal], axis=1) * steps
    return turned


def header_of(shape: tuple[int, ...], dtype: np.dtype, source: Image, path: Path) -> bytes:
    """The header of a NIfTI-1 file with voxels of a shape and type, on the grid of an image.

    Raises:
        OutputError: more voxels along an axis than it can hold.
    """
    header = nibabel.Nifti1Header()
    if max(shape) > LONGEST:
        raise OutputError(f"{path}: an image of {shape} voxels does not fit a NIfTI-1 file.")
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    _place(header, source)
    header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = b"n+1", DATA
    content: bytes = header.binaryblock
    return content.ljust(DATA, b"\0")


def _place(header: nibabel.Nifti1Header, source: Image) -> None:
    """Say in a header where the image lies."""
    if source.forms is not None:
        for name, value in source.forms.fields.items():
            header[name] = value
        return
    known = source.affine is not None
    affine, code = source.affine if known else np.eye(4), SCANNER * known
    header.set_sform(affine, code)
    header.set_qform(rigid(np.asarray(affine)), code)
    header.set_xyzt_units("mm")


def _turned(labels: Array) -> memoryview:
    """The voxels with the first axis fastest, as NIfTI wants them; in tiles, which is faster than row by row."""
    turned = np.empty(labels.shape[::-1], labels.dtype)
    for i in range(0, labels.shape[0], TILE):
        for k in range(0, labels.shape[2], TILE):
            turned[k : k + TILE, :, i : i + TILE] = labels[i : i + TILE, :, k : k + TILE].T
    return turned.reshape(-1).data
