"""NRRD and MetaImage, the formats of Slicer and ITK, through SimpleITK (extra `itk`)."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import GeometryError, MissingExtraError, ReadError
from microtome.medical.readers import apart
from microtome.medical.readers.geometry import LPS_TO_RAS
from microtome.medical.readers.kind import Kind
from microtome.medical.readers.lean import lean
from microtome.types import Array, Image

AGAIN = "Copy the file again from its source, together with the file of its voxels if it has one."
DRIVERS: dict[Kind, str] = {"nrrd": "NrrdImageIO", "metaimage": "MetaImageIO"}
HEADER = 65536  # bytes in which the text before the voxels ends
CHUNK = 1 << 20
# Where packed voxels begin, if they lie in the same file; both are streams of zlib, with a checksum at their end.
PACKED: dict[Kind, re.Pattern[bytes]] = {
    "nrrd": re.compile(rb"encoding: *(?:gz|gzip)\r?\n(?:.+\n)*?\r?\n", re.I),
    "metaimage": re.compile(rb"CompressedData *= *True *\r?\n(?:.+\n)*?ElementDataFile *= *LOCAL *\r?\n", re.I),
}
ELSEWHERE = re.compile(rb"^(data ?file|line skip|byte skip):", re.MULTILINE | re.I)

MILLIMETRES = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "cm": 10.0, "m": 1e3, "nm": 1e-6}
UNITS: dict[Kind, re.Pattern[str]] = {
    "nrrd": re.compile(r'^(?:space )?units:.*?"\s*([^"\s]+)', re.MULTILINE),
    "metaimage": re.compile(r"^\s*DistanceUnits\s*=\s*(\S+)", re.MULTILINE),
}
SPACE = re.compile(rb"^space: *\S", re.MULTILINE)
NO_DIRECTION = "the NRRD header does not say which way its axes point: taken as left, posterior, superior."
OTHER_UNIT = "the header gives lengths in a unit that is not known: taken as millimetres."


def read(path: Path, kind: Kind) -> Image:
    """Read a picture, (C, H, W) without affine, or a volume, (C, I, J, K) with its affine to RAS+ mm.

    The values of a pixel are channels, and so is a fourth axis. What the file is, `kind` says, not its name.

    Raises:
        MissingExtraError: SimpleITK is not installed.
        ReadError: truncated or damaged, voxels that lie in a missing file, or values that are no real numbers.
        GeometryError: axes without direction, or more than three and channels.
        DataError: numbers that float32 cannot hold.
    """
    try:
        import SimpleITK  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"Reading {'NRRD' if kind == 'nrrd' else 'MetaImage'}", "itk") from error

    head = _header(path)
    try:
        place, array = apart.read("itk", path, driver=DRIVERS[kind])
    except apart.ReadApartError as error:
        raise ReadError(f"{path} is truncated or damaged, or the file of its voxels is missing.", AGAIN) from error
    _check_packed(path, head, kind)
    dims = array.ndim - 1
    if dims == 4:  # a fourth axis of channels comes first
        array, dims = np.concatenate(list(array), axis=-1), 3
    if dims not in (2, 3):
        raise GeometryError(f"{path} has {dims} axes; three and channels are read.", "Split the file.")
    array = lean(array, path)
    if dims == 2:
        return Image(np.ascontiguousarray(np.moveaxis(array, 2, 0)))
    unit, notes = _unit(head.decode(errors="replace"), kind)
    if kind == "nrrd" and not SPACE.search(head.split(b"\n\n")[0]):
        notes += (NO_DIRECTION,)
    return Image(np.ascontiguousarray(array.transpose(3, 2, 1, 0)), _affine(place, unit, path), None, notes)


def _header(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEADER)
    except OSError as error:
        raise ReadError(f"{path} cannot be opened: {error.strerror}.", "Check the file's permissions.") from error


def _check_packed(path: Path, head: bytes, kind: Kind) -> None:
    """Unpack once more, up to the checksum: ITK stops before it, and would take damaged voxels for real ones."""
    found = PACKED[kind].search(head)
    if found is None or (kind == "nrrd" and ELSEWHERE.search(head[: found.end()])):
        return
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # with the header of zlib or of gzip
    try:
        with path.open("rb") as stream:
            stream.seek(found.end())
            while not unpacker.eof and (chunk := stream.read(CHUNK)):
                while chunk and not unpacker.eof:
                    unpacker.decompress(chunk, CHUNK)
                    chunk = unpacker.unconsumed_tail
    except (OSError, zlib.error) as error:
        raise ReadError(f"{path} is damaged: its packed voxels do not fit their checksum.", AGAIN) from error
    if not unpacker.eof:
        raise ReadError(f"{path} is truncated: its packed voxels end too early.", AGAIN)


def _affine(place: dict[str, Any], millimetres: float, path: Path) -> Array:
    """Voxel indices → RAS+ mm from ITK's origin, spacing and direction, which are in LPS."""
    size = len(place["spacing"])
    affine = np.eye(4)
    direction = np.array(place["direction"], float).reshape(size, size)[:3, :3]
    affine[:3, :3] = direction * np.array(place["spacing"], float)[:3] * millimetres
    affine[:3, 3] = np.array(place["origin"], float)[:3] * millimetres
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) == 0:
        raise GeometryError(f"{path} has axes without length or direction.", "Repair the directions in its header.")
    placed: Array = LPS_TO_RAS @ affine
    return placed


def _unit(text: str, kind: Kind) -> tuple[float, tuple[str, ...]]:
    """Millimetres in the header's unit of length, and what had to be assumed; both formats are in millimetres else."""
    found = UNITS[kind].search(text)
    if found is None:
        return 1.0, ()
    unit = found.group(1).lower()
    return (MILLIMETRES[unit], ()) if unit in MILLIMETRES else (1.0, (OTHER_UNIT,))
