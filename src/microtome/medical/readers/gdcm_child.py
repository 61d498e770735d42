"""A program of its own that decodes DICOM files with GDCM, which may end its process on damaged data.

It gets one path a line, as JSON, and answers each with a line of JSON, `shape` and `dtype` or `error`, and the bytes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import JPEGExtended12Bit


def decode(path: str) -> np.ndarray:
    """Pixels as pydicom gives them."""
    dataset = pydicom.dcmread(path, force=True)
    if dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and dataset.BitsStored > 8:
        return _by_gdcm_alone(path)
    dataset.pixel_array_options(decoding_plugin="gdcm")
    return np.asarray(dataset.pixel_array)


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


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what decoders print must not get in between
    for line in sys.stdin.buffer:
        content = b""
        try:
            array = decode(json.loads(line))
            content = np.ascontiguousarray(array).tobytes()
            answer: dict[str, Any] = {"shape": array.shape, "dtype": array.dtype.str, "bytes": len(content)}
        except Exception as error:  # decoders raise errors of their own
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n" + content)
        answers.flush()


if __name__ == "__main__":
    main()
