"""What a file is, by its first bytes; its name only helps to say what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from microtome.errors import ReadError

Kind = Literal["nifti", "dicom", "picture", "npz", "nrrd", "metaimage"]

HEAD = 352  # bytes that hold every signature below; a NIfTI-1 header with its magic ends at 348

SUFFIXES: dict[str, Kind] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "nifti",
    ".img": "nifti",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".tif": "picture",
    ".tiff": "picture",
    ".gif": "picture",
    ".bmp": "picture",
    ".npz": "npz",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}

PICTURE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM")
ZIP_SIGNATURE = b"PK\x03\x04"
GZIP_SIGNATURE = b"\x1f\x8b"
SINGLE_MAGIC = (b"n+1\0", b"n+2\0")  # NIfTI-1 and 2 with their voxels in the same file
NIFTI_MAGIC = (b"n+1\0", b"ni1\0")
NIFTI2_MAGIC = (b"n+2\0", b"ni2\0")
NRRD_SIGNATURE = b"NRRD000"
METAIMAGE = re.compile(rb"([ \t]*\w+[ \t]*=[^\n]*\n)*[ \t]*(ObjectType[ \t]*=[ \t]*Image|NDims[ \t]*=[ \t]*\d)")

# Value representations that open the first elements of a DICOM file (PS3.5, table 6.2-1).
FIRST_VR = {b"UL", b"CS", b"UI", b"DA", b"TM", b"LO", b"SH", b"OB", b"DT", b"IS", b"UN", b"LT"}


def suffix_of(path: Path) -> str:
    """The suffix in lower case, `.nii.gz` as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem_of(path: Path) -> str:
    """The file name without a known suffix; dots inside the name stay (`1.2.840.3` is a whole stem)."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix in SUFFIXES else path.name


def kind_of(path: Path) -> Kind:
    """Recognise a file by its content.

    Raises:
        ReadError: the file is missing, a folder, empty, not readable, or of no known kind.
    """
    head = read_head(path)
    if not head:
        raise ReadError(f"{path} is empty.", "Copy the file again from its source.")
    found = kind_of_head(head)
    named = SUFFIXES.get(suffix_of(path))
    if found is not None:
        return found
    if named == "nifti" and suffix_of(path) in (".hdr", ".img"):
        return "nifti"
    if named is not None:
        raise ReadError(
            f"{path} is not what its name says: its content is no {suffix_of(path)[1:]} file.",
            "Copy the file again from its source.",
        )
    raise ReadError(
        f"{path} is of no kind that microtome reads.",
        "Images are NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG, TIFF, GIF, BMP or MedMNIST npz files.",
    )


def is_dicom(path: Path) -> bool:
    """Whether the content of a file looks like DICOM, whatever its name."""
    try:
        return kind_of_head(read_head(path)) == "dicom"
    except ReadError:
        return False


def read_head(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        ReadError: the file is missing, a folder, or not readable.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist.", "Check the path.") from None
    except IsADirectoryError:
        raise ReadError(f"{path} is a folder, not a file.", "Check the path.") from None
    except OSError as error:
        raise ReadError(f"{path} cannot be opened: {error.strerror}.", "Check the file's permissions.") from error


def kind_of_head(head: bytes) -> Kind | None:
    """The kind that the first bytes of a file show, or None."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(PICTURE_SIGNATURES):
        return "picture"
    if head.startswith(ZIP_SIGNATURE):
        return "npz"
    if head.startswith(GZIP_SIGNATURE) or head[344:348] in NIFTI_MAGIC or head[4:8] in NIFTI2_MAGIC:
        return "nifti"
    if head.startswith(NRRD_SIGNATURE):
        return "nrrd"
    if METAIMAGE.match(head):
        return "metaimage"
    return "dicom" if _is_bare_dataset(head) else None


def _is_bare_dataset(head: bytes) -> bool:
    """DICOM elements without preamble: the first one is of group 0002 or 0008, with a length that makes sense."""
    if len(head) < 8 or head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    if head[4:6] in FIRST_VR:
        return True
    return 0 < int.from_bytes(head[4:8], "little") <= 64 and head[:2] != b"\0\x08"
