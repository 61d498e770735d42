"""NIfTI-1, NIfTI-2 and Analyze volumes, through nibabel."""

from __future__ import annotations

import gzip
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from microtome.errors import GeometryError, ReadError
from microtome.medical.readers.kind import GZIP_SIGNATURE, HEAD, SINGLE_MAGIC
from microtome.medical.readers.lean import lean
from microtome.types import Array, Forms, Image

NIFTI2_SIZES = (540, 0x1C020000)  # what a NIfTI-2 header begins with, in either byte order
AGAIN = "Copy the file again from its source."
PACKED = 3  # how often a file may have been packed
# What nibabel raises on broken files: stream errors, header errors, and sizes that no memory holds.
BROKEN = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError),
    *(zlib.error, WrapStructError),
)

UNITS = {1: 1e3, 2: 1.0, 3: 1e-3}  # code of `xyzt_units` → millimetres; its three lowest bits are the unit of length
UNKNOWN_UNIT = "the NIfTI header does not say in which unit of length it is: taken as millimetres."
NO_DIRECTION = "the NIfTI or Analyze header does not say which way its axes point: taken as left, anterior, superior."
# Where the header says where its voxels lie. The last four numbers of `pixdim` are of other axes.
GRID = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def read(path: Path) -> Image:
    """Read a volume: (1, I, J, K), or (C, I, J, K) where the file has a fourth axis, with its affine to RAS+ mm.

    Packed or not, whatever its name. Integers without scaling keep their type; everything else is float32 after slope
    and intercept (NIfTI-1 standard, `scl_slope` and `scl_inter`). Metres and micrometres become millimetres
    (`xyzt_units`).

    Raises:
        ReadError: truncated, not NIfTI, or of a numeric type that is no image.
        GeometryError: an affine that has no inverse, or more than four axes.
        DataError: numbers that float32 cannot hold.
    """
    array, affine, forms, notes = _load(path)
    if array.dtype.fields:  # RGB triples
        array = np.stack([array[name] for name in array.dtype.names or ()], axis=-1)
    array = _four_axes(array, path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) == 0:
        raise GeometryError(f"{path} has an affine without inverse.", "Repair the sform or qform of the header.")
    return Image(np.ascontiguousarray(np.moveaxis(lean(array, path), 3, 0)), affine, forms, notes)


def scaled(affine: Array, millimetres: float) -> Array:
    """An affine of another unit of length, in millimetres."""
    placed: Array = np.diag([millimetres, millimetres, millimetres, 1.0]) @ affine
    return placed


def _load(path: Path) -> tuple[Array, Array, Forms | None, tuple[str, ...]]:
    """Voxels after scaling, the affine in millimetres, both forms of it, and what had to be assumed."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # nibabel warns of odd headers; what matters is checked by us
            head = stream.read(HEAD)
            stream.seek(0)
            if head.startswith(GZIP_SIGNATURE):
                image = _unpacked(path)
            elif head[344:348] in SINGLE_MAGIC or head[4:8] in SINGLE_MAGIC:
                one = _version(head)
                image = one.from_file_map(one.make_file_map({"image": stream}))
            else:  # a header and its voxels in two files, which nibabel finds by their names
                image = nibabel.load(path)
            known = isinstance(image.header, nibabel.Nifti1Header)
            forms, millimetres, notes = _place(image.header) if known else _of_analyze(image)
            affine = scaled(np.array(image.affine, dtype=np.float64), millimetres)
            return np.asarray(image.dataobj), affine, forms, notes
    except ImageFileError as error:
        raise ReadError(f"{path} is not a NIfTI file, or its header is broken.", AGAIN) from error
    except HeaderDataError as error:
        raise ReadError(f"{path} has a broken NIfTI header: {_first_line(error)}.", AGAIN) from error
    except BROKEN as error:
        raise ReadError(
            f"{path} is truncated or damaged: the file has {path.stat().st_size:,} bytes and ends too early.", AGAIN
        ) from error


def _unpacked(path: Path) -> Any:
    """Unpack the whole stream first: nibabel stops before its checksum, and would take damaged voxels for real ones."""
    content = path.read_bytes()
    for _ in range(PACKED):
        if content.startswith(GZIP_SIGNATURE):
            content = gzip.decompress(content)
    return _version(content).from_bytes(content)


def _version(head: bytes) -> Any:
    second = int.from_bytes(head[:4], sys.byteorder) in NIFTI2_SIZES
    return nibabel.Nifti2Image if second else nibabel.Nifti1Image


def _place(header: Any) -> tuple[Forms, float, tuple[str, ...]]:
    """Both forms of a header, the millimetres in its unit of length, and what had to be assumed."""
    code = int(header["xyzt_units"]) & 7
    millimetres = UNITS.get(code, 1.0)
    fields = {name: np.array(header[name]) for name in GRID}
    pixdim = np.ones(8, np.float32)
    pixdim[:4] = header["pixdim"][:4]
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except (ValueError, HeaderDataError):  # numbers that turn nothing; nibabel has then taken the sform
        qform = None
    both = [None if form is None else scaled(form, millimetres) for form in (qform, sform)]
    forms = Forms({**fields, "pixdim": pixdim, "xyzt_units": code}, *both)
    notes = () if code in UNITS else (UNKNOWN_UNIT,)
    placed = bool(header["qform_code"] or header["sform_code"])
    return forms, millimetres, notes if placed else (*notes, NO_DIRECTION)


def _of_analyze(image: Any) -> tuple[Forms | None, float, tuple[str, ...]]:
    """As `_place`, for Analyze, from which NIfTI came: millimetres, and no place and direction but what SPM adds."""
    header = image.header
    if not np.allclose(image.affine, header.get_base_affine()):
        return None, 1.0, ()
    fields: dict[str, Any] = dict.fromkeys(GRID[:2], 0)
    pixdim = np.ones(8, np.float32)
    pixdim[1:4] = header["pixdim"][1:4]
    return Forms({**fields, "pixdim": pixdim, "xyzt_units": 2}, None, None), 1.0, (NO_DIRECTION,)


def _four_axes(array: Array, path: Path) -> Array:
    """(I, J, K, C): missing axes get length 1, empty middle axes of vector files go."""
    shape = list(array.shape)
    while len(shape) > 4 and 1 in shape[3:]:
        shape.pop(3 + shape[3:].index(1))
    shape += [1] * (4 - len(shape))
    if len(shape) > 4:
        raise GeometryError(f"{path} has {len(shape)} axes; three and channels are read.", "Split the file.")
    if 0 in shape:
        raise ReadError(f"{path} holds no voxels: its shape is {array.shape}.", AGAIN)
    return array.reshape(shape)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
