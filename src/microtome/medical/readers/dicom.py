"""DICOM images: one file is a picture, several are the slices of a volume, and so are the frames of one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from microtome.errors import GeometryError, MissingExtraError, ReadError
from microtome.medical.readers.elements import AGAIN, frame_count, load, numbers, plane, require_image, rescale, value
from microtome.medical.readers.geometry import Plane, stack
from microtome.types import Array, Image

DECODERS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow", "gdcm")  # GDCM last: see _decoder
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(paths: Sequence[Path]) -> Image:
    """Read a picture or a volume.

    One file with one frame is a picture, (1, H, W) or (3, H, W) without affine, whatever it says of its place. The
    frames of one file, or several files, are a volume: (1, I, J, K) with I along a row of pixels (columns), J down
    the rows, K along the slice normal, and the affine to RAS+ mm. Values are rescaled by the modality's slope and
    intercept or look-up table; MONOCHROME1 is inverted so that large is bright; colours are RGB.

    Raises:
        ReadError: truncated, damaged, or an object without image.
        MissingExtraError: compressed in a way that no installed decoder reads.
        GeometryError: the slices make no evenly spaced stack.
    """
    if len(paths) > 1:
        return _read_series(paths)
    dataset = load(paths[0])
    frames = _frames(dataset, paths[0])
    if frames > 1:
        return _read_frames(dataset, paths[0], frames)
    array = _rescaled(_decode(dataset, paths[0]), dataset, paths[0])
    return Image(array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, 2, 0)))


def _frames(dataset: Dataset, path: Path) -> int:
    require_image(dataset, path)
    count = frame_count(dataset, path)
    if not any(keyword in dataset for keyword in PIXELS):
        raise ReadError(f"{path} is truncated: it has no pixel data.", AGAIN)
    return count


def _decoder(dataset: Dataset) -> str:
    """The pydicom plugin that decodes a file: the first of `DECODERS` that is installed; empty if none is needed.

    One only: pydicom would try them all in turn on a damaged file, and GDCM then may end the whole process.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    installed = get_decoder(syntax).available_plugins
    return next((name for name in DECODERS if name in installed), "")


def _decode(dataset: Dataset, path: Path) -> Array:
    """Pixels as stored: (H, W), (F, H, W), (H, W, 3) or (F, H, W, 3); palettes become RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.pixel_array_options(decoding_plugin=_decoder(dataset))
            array: Array = dataset.pixel_array
            if str(dataset.get("PhotometricInterpretation", "")).startswith("PALETTE"):
                array = apply_color_lut(array, dataset)[..., :3]
                array = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array  # displays have 8 bits
    except Exception as error:  # decoders raise errors of their own: RuntimeError, ValueError, AttributeError, …
        text = str(error)
        if "missing dependencies" in text:
            raise MissingExtraError("Reading JPEG-compressed DICOM", "jpeg") from error
        if "less than expected" in text:
            raise ReadError(f"{path} is truncated: pixel data are missing at its end.", AGAIN) from error
        raise ReadError(f"The pixel data of {path} cannot be decoded.", AGAIN) from error
    return array.astype(array.dtype.newbyteorder("="))


def _rescaled(array: Array, dataset: Dataset, path: Path, scale: tuple[float, float] | None = None) -> Array:
    """Stored values → bright is large → the modality's units. Integers stay integers where nothing is rescaled."""
    if value(dataset, "PhotometricInterpretation", path) == "MONOCHROME1":
        bits = int(value(dataset, "BitsStored", path) or array.dtype.itemsize * 8)
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if array.dtype.kind == "i" else (0, (1 << bits) - 1)
        array = (low + high - np.clip(array.astype(np.int64), low, high)).astype(array.dtype)
    if value(dataset, "ModalityLUTSequence", path) is not None:
        try:
            return np.asarray(apply_modality_lut(array, dataset))
        except Exception as error:  # whatever a broken table makes pydicom raise
            raise ReadError(f"{path} has a broken modality look-up table.", AGAIN) from error
    slope, intercept = scale or rescale(dataset, path)
    if (slope, intercept) == (1.0, 0.0):
        return array.astype(np.float32) if array.dtype.kind == "f" or array.dtype.itemsize > 4 else array
    return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _read_series(paths: Sequence[Path]) -> Image:
    """Two passes, so that only one slice's file is in memory beside the volume."""
    folder = paths[0].parent
    headers = [load(path, pixels=False) for path in paths]
    planes, sizes = [], set()
    for header, path in zip(headers, paths, strict=True):
        require_image(header, path)
        if frame_count(header, path) > 1:
            raise ReadError(f"{path} has several frames of its own.", "Give it alone, as one volume.")
        found = plane(header, path)
        if found is None:
            raise GeometryError(f"{path} does not say where the slice lies.", "Give single pictures one by one.")
        planes.append(found)
        sizes.add((header.Rows, header.Columns))
    if len(sizes) > 1:
        raise GeometryError(f"{folder} holds slices of different size.", "Give each series its own folder.")
    order, affine = stack(planes, folder)
    scales = [rescale(header, path) for header, path in zip(headers, paths, strict=True)]
    rescaled = any(scale != (1.0, 0.0) for scale in scales)
    slices = []
    for k in order:
        dataset = load(paths[k])
        _frames(dataset, paths[k])
        array = _rescaled(_decode(dataset, paths[k]), dataset, paths[k])
        if array.ndim != 2:
            raise ReadError(f"{paths[k]} is a colour picture, not the slice of a volume.", "Leave it out.")
        slices.append(array.astype(np.float32) if rescaled else array)
    return Image(np.ascontiguousarray(np.stack([s.T for s in slices], axis=-1)[None]), affine)


def _read_frames(dataset: Dataset, path: Path, frames: int) -> Image:
    planes = _frame_planes(dataset, path, frames)
    if planes is None or value(dataset, "SamplesPerPixel", path) == 3:
        raise ReadError(
            f"{path} is a film of {frames} frames, not a volume: the frames have no place in space.",
            "Export the frames that you need as single pictures.",
        )
    order, affine = stack(planes, path)
    groups = value(dataset, "PerFrameFunctionalGroupsSequence", path)
    array = _decode(dataset, path)
    if len(array) != frames:
        raise ReadError(f"{path} is truncated: it has {len(array)} of {frames} frames.", AGAIN)
    if groups is None:
        array = _rescaled(array, dataset, path)[order]
    else:
        array = np.stack([_rescaled(array[k], dataset, path, _frame_scale(dataset, path, k)) for k in order])
    return Image(np.ascontiguousarray(array.transpose(2, 1, 0)[None]), affine)


def _frame_planes(dataset: Dataset, path: Path, frames: int) -> list[Plane] | None:
    """The frames' places: enhanced objects say them frame by frame, dose grids by offsets from the first."""
    if value(dataset, "PerFrameFunctionalGroupsSequence", path) is not None:
        found = [_frame_plane(dataset, path, k) for k in range(frames)]
        return None if any(p is None for p in found) else [p for p in found if p is not None]
    first = plane(dataset, path)
    offsets = numbers(dataset, "GridFrameOffsetVector", path, frames)
    if first is None or offsets is None:
        return None
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    if offsets[0] != 0:  # PS3.3, C.8.8.3.2: then they are coordinates along the normal
        offsets = offsets - offsets[0]
    return [Plane(first.position + offset * normal, first.orientation, first.spacing) for offset in offsets]


def _frame_plane(dataset: Dataset, path: Path, frame: int) -> Plane | None:
    place = Dataset()
    for sequence, keyword in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        group = _group(dataset, path, frame, sequence)
        if group is not None and value(group, keyword, path) is not None:
            setattr(place, keyword, value(group, keyword, path))
    return plane(place, path)


def _frame_scale(dataset: Dataset, path: Path, frame: int) -> tuple[float, float]:
    group = _group(dataset, path, frame, "PixelValueTransformationSequence")
    return rescale(dataset if group is None else group, path)


def _group(dataset: Dataset, path: Path, frame: int, sequence: str) -> Dataset | None:
    """A functional group of one frame: its own, or the one that all frames share (PS3.3, C.7.6.16)."""
    own = value(dataset, "PerFrameFunctionalGroupsSequence", path) or []
    shared = value(dataset, "SharedFunctionalGroupsSequence", path) or []
    for groups in (own[frame : frame + 1], shared[:1]):
        for group in groups:
            items = value(group, sequence, path)
            if items is not None:
                first: Dataset = items[0]
                return first
    return None
