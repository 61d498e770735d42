"""The program of `apart`: it reads files with GDCM and ITK, which may end their process on damaged data.

It gets one question a line, as JSON: `reader`, `path`, and for ITK `driver`. It answers each with a line of JSON,
`error` or what was read with `shape`, `dtype` and `bytes`, and then that many bytes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Answer = tuple[dict[str, Any], np.ndarray]


def gdcm(path: str) -> Answer:
    """Pixels of a DICOM file as pydicom gives them."""
    import pydicom
    from pydicom.uid import JPEGExtended12Bit

    dataset = pydicom.dcmread(path, force=True)
    if dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and dataset.BitsStored > 8:
        return {}, _by_gdcm_alone(path)
    dataset.pixel_array_options(decoding_plugin="gdcm")
    return {}, np.asarray(dataset.pixel_array)


def _by_gdcm_alone(path: str) -> np.ndarray:
    """The gray frames of JPEG of 12 bits, which pydicom gives none of the decoders that are wanted here."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    if not reader.Read():
        raise ValueError("GDCM cannot read it")
    image: Any = reader.GetImage()
    columns, rows, *frames = (int(image.GetDimension(k)) for k in range(image.GetNumberOfDimensions()))
    form = image.GetPixelFormat()
    if form.GetSamplesPerPixel() != 1:
        raise ValueError("it is no gray picture")
    kind = f"{'i' if form.GetPixelRepresentation() == 1 else 'u'}{form.GetBitsAllocated() // 8}"
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kind)
    return values.reshape(*frames, rows, columns)


def itk(path: str, driver: str) -> Answer:
    """An image as SimpleITK reads it: (…, z, y, x, values), with what says where it lies."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO(driver)
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image)
    place = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return place, array[..., None] if image.GetNumberOfComponentsPerPixel() == 1 else array


READERS: dict[str, Callable[..., Answer]] = {"gdcm": gdcm, "itk": itk}


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what readers print must not get in between
    for line in sys.stdin.buffer:
        content = np.empty(0, np.uint8)
        try:
            question = json.loads(line)
            answer, array = READERS[question.pop("reader")](**question)
            answer |= {"shape": array.shape, "dtype": array.dtype.str, "bytes": array.nbytes}
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        except Exception as error:  # readers raise errors of their own
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(content.data)
        answers.flush()


if __name__ == "__main__":
    main()
