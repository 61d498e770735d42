"""DICOM images: one file is a picture, several are the slices of a volume, and so are the frames of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from microtome.errors import GeometryError, ReadError
from microtome.medical.readers.decoders import decode
from microtome.medical.readers.elements import AGAIN, frame_count, load, numbers, plane, require_image, rescale, value
from microtome.medical.readers.geometry import Plane, stack
from microtome.medical.readers.stored import coloured, in_units, stacked
from microtome.types import Image

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(paths: Sequence[Path]) -> Image:
    """Read a picture or a volume.

    One file with one frame is a picture, (1, H, W) or (3, H, W) without affine, whatever it says of its place. The
    frames of one file, or several files, are a volume: (1, I, J, K) with I along a row of pixels (columns), J down
    the rows, K along the slice normal, and the affine to RAS+ mm. Values are rescaled by the modality's slope and
    intercept or look-up table; MONOCHROME1 is inverted so that large is bright; colours are RGB. Declared padding is
    never brighter than the darkest of the other pixels.

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
    array = in_units(coloured(decode(dataset, paths[0]), dataset, paths[0]), dataset, paths[0]).filled
    return Image(array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, 2, 0)))


def _frames(dataset: Dataset, path: Path) -> int:
    require_image(dataset, path)
    count = frame_count(dataset, path)
    if not any(keyword in dataset for keyword in PIXELS):
        raise ReadError(f"{path} is truncated: it has no pixel data.", AGAIN)
    return count


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
        pixels = in_units(coloured(decode(dataset, paths[k]), dataset, paths[k]), dataset, paths[k])
        if pixels.array.ndim != 2:
            raise ReadError(f"{paths[k]} is a colour picture, not the slice of a volume.", "Leave it out.")
        slices.append(replace(pixels, array=pixels.array.astype(np.float32)) if rescaled else pixels)
    return Image(np.ascontiguousarray(stacked(slices).filled.transpose(2, 1, 0)[None]), affine)


def _read_frames(dataset: Dataset, path: Path, frames: int) -> Image:
    planes = _frame_planes(dataset, path, frames)
    if planes is None or value(dataset, "SamplesPerPixel", path) == 3:
        raise ReadError(
            f"{path} is a film of {frames} frames, not a volume: the frames have no place in space.",
            "Export the frames that you need as single pictures.",
        )
    order, affine = stack(planes, path)
    groups = value(dataset, "PerFrameFunctionalGroupsSequence", path)
    array = coloured(decode(dataset, path), dataset, path)
    if len(array) != frames:
        raise ReadError(f"{path} is truncated: it has {len(array)} of {frames} frames.", AGAIN)
    if groups is None:
        volume = in_units(array, dataset, path).filled[order]
    else:
        frame = [in_units(array[k], dataset, path, _frame_scale(dataset, path, k)) for k in order]
        volume = stacked(frame).filled
    return Image(np.ascontiguousarray(volume.transpose(2, 1, 0)[None]), affine)


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
    found = []
    for sequence, keyword, count in (
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PixelMeasuresSequence", "PixelSpacing", 2),
    ):
        group = _group(dataset, path, frame, sequence)
        array = None if group is None else numbers(group, keyword, path, count)
        if array is None:
            return None
        found.append(array)
    return Plane(*found)


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
