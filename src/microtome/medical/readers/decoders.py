"""Decoding of DICOM pixel data, by the first decoder that is installed."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEGExtended12Bit

from microtome.errors import MissingExtraError, ReadError
from microtome.medical.readers import apart
from microtome.medical.readers.elements import AGAIN
from microtome.types import Array

DECODERS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow", "gdcm")  # GDCM last: see `apart`
EXTRA = "jpeg"


def decode(dataset: Dataset, path: Path) -> Array:
    """Pixels as stored: (H, W), (F, H, W), (H, W, 3) or (F, H, W, 3).

    Raises:
        ReadError: truncated or damaged.
        MissingExtraError: compressed in a way that no installed decoder reads.
    """
    try:
        plugin = plugin_of(dataset)
        if plugin == "gdcm":
            if importlib.util.find_spec("gdcm") is None:
                raise MissingExtraError("Reading JPEG-compressed DICOM", EXTRA)
            return apart.read("gdcm", path)[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.pixel_array_options(decoding_plugin=plugin)
            return np.asarray(dataset.pixel_array)
    except MissingExtraError:
        raise
    except Exception as error:  # decoders raise errors of their own: RuntimeError, ValueError, AttributeError, …
        text = str(error)
        if "missing dependencies" in text:
            raise MissingExtraError("Reading JPEG-compressed DICOM", EXTRA) from error
        if "less than expected" in text:
            raise ReadError(f"{path} is truncated: pixel data are missing at its end.", AGAIN) from error
        raise ReadError(f"The pixel data of {path} cannot be decoded.", AGAIN) from error


def plugin_of(dataset: Dataset) -> str:
    """The pydicom plugin that decodes a file: the first of `DECODERS` that is installed; empty if none is needed.

    One only: pydicom would try them all in turn on a damaged file. JPEG of 12 bits it would give to none but pylibjpeg,
    while GDCM reads it.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    installed = get_decoder(syntax).available_plugins
    first = next((name for name in DECODERS if name in installed), "")
    twelve = syntax == JPEGExtended12Bit and int(dataset.get("BitsStored") or 8) > 8
    return "gdcm" if twelve and first != "pylibjpeg" else first
