"""JPEG as Pillow does not decode it, of 12 bits or lossless, through GDCM (extra `jpeg`)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, SecondaryCaptureImageStorage, generate_uid

from microtome.errors import MissingExtraError, ReadError
from microtome.medical.readers.decoders import EXTRA
from microtome.medical.readers.decoders import decode as decode_dicom
from microtome.medical.readers.elements import load
from microtome.types import Array

AGAIN = "Copy the file again from its source."
START, END = b"\xff\xd8", b"\xff\xd9"
PADDED = 16  # bytes at the end in which the last marker lies
FRAMES = range(0xC0, 0xD0)  # markers of a frame header, but for those of tables and of arithmetic coding
TABLES = (0xC4, 0xC8, 0xCC)
SEQUENTIAL, LOSSLESS = (0xC0, 0xC1), 0xC3  # the processes that GDCM decodes; the first two with 8 or 12 bits
PROCESS = {0xC2: "progressive", 0xC3: "lossless"}


@dataclass(frozen=True)
class Frame:
    """What a JPEG's frame header says: the process by its marker, bits per number, size, and number of colours."""

    process: int
    bits: int
    rows: int
    columns: int
    colours: int


def description(path: Path) -> Frame | None:
    """The frame header of a whole JPEG file; None of anything else, and of a JPEG that breaks off."""
    content = path.read_bytes()
    if not content.startswith(START) or END not in content[-PADDED:]:
        return None
    at = 2
    while at + 9 < len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in FRAMES and marker not in TABLES:
            rows, columns = (int.from_bytes(content[at + k : at + k + 2], "big") for k in (5, 7))
            return Frame(marker, content[at + 4], rows, columns, content[at + 9])
        at += 2 + length
    return None


def decode(path: Path, frame: Frame) -> Array:
    """Decode a gray JPEG of up to 16 bits: (H, W), uint8 or uint16.

    Raises:
        MissingExtraError: GDCM is not installed.
        ReadError: a process or colours that GDCM is not given; damaged.
    """
    widest = {LOSSLESS: 16, **dict.fromkeys(SEQUENTIAL, 12)}.get(frame.process, 0)
    known = 2 <= frame.bits <= widest
    if frame.colours != 1 or not known or not frame.rows * frame.columns > 0:
        kind = f"{PROCESS.get(frame.process, '')} JPEG of {frame.bits} bits and {frame.colours} colours".strip()
        raise ReadError(f"{path} is a {kind}, which cannot be decoded.", "Save it as PNG or TIFF.")
    syntax = JPEGLossless if frame.process == LOSSLESS else JPEGExtended12Bit
    with tempfile.TemporaryDirectory() as folder:
        wrapped = Path(folder) / "picture.dcm"
        _wrap(path.read_bytes(), frame, syntax, wrapped)
        try:
            return decode_dicom(load(wrapped), wrapped)
        except MissingExtraError:
            raise MissingExtraError(f"Reading JPEG of {frame.bits} bits", EXTRA) from None
        except ReadError as error:
            raise ReadError(f"{path} is damaged and cannot be decoded.", AGAIN) from error


def _wrap(content: bytes, frame: Frame, syntax: Any, path: Path) -> None:
    """A DICOM file around one JPEG, for GDCM."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, SecondaryCaptureImageStorage
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SOPClassUID, dataset.PhotometricInterpretation = SecondaryCaptureImageStorage, "MONOCHROME2"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = frame.rows, frame.columns, 1
    dataset.BitsAllocated, dataset.BitsStored = (8 if frame.bits <= 8 else 16), frame.bits
    dataset.HighBit, dataset.PixelRepresentation = frame.bits - 1, 0
    dataset.PixelData = encapsulate([content])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
