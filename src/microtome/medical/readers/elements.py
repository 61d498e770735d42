"""DICOM files and their elements, through pydicom; every failure becomes a `ReadError` that names the file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from microtome.errors import ReadError
from microtome.medical.readers.geometry import Plane
from microtome.types import Array

AGAIN = "Copy the file again from its source."
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."  # prefix of the SOP classes of segmentations (and surfaces, registrations)


def load(path: Path, *, pixels: bool = True) -> Dataset:
    """Open a file, with or without its pixels; a missing meta header is guessed.

    Raises:
        ReadError: missing, truncated before the pixels, or not DICOM.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values against the standard, and quotes them
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
            _complete(dataset)
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist.", "Check the path.") from None
    except Exception as error:  # broken files raise whatever they meet first, struct.error and zlib.error included
        raise ReadError(f"{path} is truncated or not a DICOM file.", AGAIN) from error
    return dataset


def _complete(dataset: Dataset) -> None:
    """Give a dataset without meta header the transfer syntax that it was read with."""
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        dataset.file_meta = meta = FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = syntax


def value(dataset: Dataset, keyword: str, path: Path) -> Any:
    """An element's value, None where it is missing or empty.

    Raises:
        ReadError: the element cannot be converted.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = dataset.get(keyword)
    except Exception as error:  # pydicom converts elements when they are asked for, and raises what it meets
        raise ReadError(f"{path} has a broken DICOM element {keyword}.", AGAIN) from error
    return None if found is None or (hasattr(found, "__len__") and len(found) == 0) else found


def numbers(dataset: Dataset, keyword: str, path: Path, count: int) -> Array | None:
    """An element of `count` numbers as float64, None where it is missing or empty."""
    found = value(dataset, keyword, path)
    if found is None:
        return None
    try:
        array = np.array(found, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ReadError(f"{path} has a broken DICOM element {keyword}.", AGAIN) from error
    if len(array) != count or not np.isfinite(array).all():
        raise ReadError(f"{path} has a broken DICOM element {keyword}: {count} numbers are wanted.", AGAIN)
    return array


def require_image(dataset: Dataset, path: Path) -> None:
    """Refuse an object without image.

    Raises:
        ReadError: a report, plan, segmentation, …; or an image whose description is cut off.
    """
    if is_image(dataset, path):
        return
    if claims_image(dataset, path):
        raise ReadError(f"{path} is truncated: it has no rows and columns.", AGAIN)
    name = getattr(value(dataset, "SOPClassUID", path), "name", "") or "an object of unknown class"
    raise ReadError(f"{path} holds no image but {name}.", "Leave it out; convert a segmentation to NIfTI.")


def claims_image(dataset: Dataset, path: Path) -> bool:
    """Whether an object's class is that of an image, also when it lacks everything else."""
    kind = value(dataset, "SOPClassUID", path) or value(dataset.file_meta, "MediaStorageSOPClassUID", path)
    return str(getattr(kind, "name", "")).endswith("Image Storage")


def is_image(dataset: Dataset, path: Path) -> bool:
    """Whether an object describes an image: it has rows and columns and is no segmentation."""
    kind = str(value(dataset, "SOPClassUID", path) or "")
    return bool(value(dataset, "Rows", path) and value(dataset, "Columns", path)) and not kind.startswith(SEGMENTATION)


def frame_count(dataset: Dataset, path: Path) -> int:
    """How many frames a file says that it holds; 1 where it does not say."""
    count = numbers(dataset, "NumberOfFrames", path, 1)
    return 1 if count is None else max(1, int(count[0]))


def rescale(dataset: Dataset, path: Path) -> tuple[float, float]:
    """Slope and intercept from stored values to the modality's units; dose grids have a slope of their own."""
    slope = numbers(dataset, "RescaleSlope", path, 1)
    if slope is None:
        slope = numbers(dataset, "DoseGridScaling", path, 1)
    intercept = numbers(dataset, "RescaleIntercept", path, 1)
    if slope is not None and slope[0] == 0:
        raise ReadError(f"{path} has a RescaleSlope of 0.", "Export the series again.")
    return (1.0 if slope is None else float(slope[0])), (0.0 if intercept is None else float(intercept[0]))


def plane(dataset: Dataset, path: Path) -> Plane | None:
    """Where a slice lies, or None where the file does not say."""
    position = numbers(dataset, "ImagePositionPatient", path, 3)
    orientation = numbers(dataset, "ImageOrientationPatient", path, 6)
    spacing = numbers(dataset, "PixelSpacing", path, 2)
    if position is None or orientation is None or spacing is None:
        return None
    return Plane(position, orientation, spacing)


def split_series(paths: Sequence[Path]) -> tuple[list[list[Path]], list[Path]]:
    """Sort files into series.

    The SeriesInstanceUID tells them apart; where it is empty, study, frame of reference, modality, size and direction
    do.

    Returns:
        The series, each with its files in the given order; and the files that hold another kind of object.

    Raises:
        ReadError: a broken file; leaving it out could shorten a series unseen.
    """
    series: dict[tuple[Any, ...], list[Path]] = {}
    others: list[Path] = []
    for path in paths:
        dataset = load(path, pixels=False)
        if is_image(dataset, path):
            series.setdefault(_series_key(dataset, path), []).append(path)
        elif claims_image(dataset, path):
            require_image(dataset, path)
        else:
            others.append(path)
    return list(series.values()), others


def _series_key(dataset: Dataset, path: Path) -> tuple[Any, ...]:
    uid = value(dataset, "SeriesInstanceUID", path)
    if uid:
        return (str(uid),)
    keywords = ("StudyInstanceUID", "FrameOfReferenceUID", "Modality", "SeriesNumber", "Rows", "Columns")
    direction = numbers(dataset, "ImageOrientationPatient", path, 6)
    rounded = None if direction is None else tuple(np.round(direction, 2) + 0.0)
    return ("", *(str(value(dataset, keyword, path)) for keyword in keywords), rounded)
