"""Decoding of DICOM pixel data, by the first decoder that is installed; GDCM in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEGExtended12Bit

from microtome.errors import MissingExtraError, ReadError
from microtome.medical.readers import gdcm_child
from microtome.medical.readers.elements import AGAIN
from microtome.types import Array

DECODERS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow", "gdcm")  # GDCM last: it takes a process
EXTRA = "jpeg"


class Decoder:
    """Decodes files, one after another. A process for GDCM is started when one needs it, and ended with the block."""

    def __init__(self) -> None:
        """Begin without a process."""
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin to decode."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._end()

    def __call__(self, dataset: Dataset, path: Path) -> Array:
        """Pixels as stored: (H, W), (F, H, W), (H, W, 3) or (F, H, W, 3).

        Raises:
            ReadError: truncated or damaged.
            MissingExtraError: compressed in a way that no installed decoder reads.
        """
        try:
            plugin = plugin_of(dataset)
            if plugin == "gdcm":
                return self._by_gdcm(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset.pixel_array_options(decoding_plugin=plugin)
                return np.asarray(dataset.pixel_array)
        except (ReadError, MissingExtraError):
            raise
        except Exception as error:  # decoders raise errors of their own: RuntimeError, ValueError, AttributeError, …
            raise _told(str(error), path) from error

    def _by_gdcm(self, path: Path) -> Array:
        """Ask the child; a child that has ended is told as a damaged file, and the next file gets another."""
        if importlib.util.find_spec("gdcm") is None:
            raise MissingExtraError("Reading JPEG-compressed DICOM", EXTRA)
        child = self._child = self._child or subprocess.Popen(
            [sys.executable, "-P", gdcm_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(str(path.absolute())).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline() or b"{}")
            content = child.stdout.read(answer.get("bytes", 0))
        except (OSError, ValueError):
            answer = {}
        if "shape" in answer and len(content) == answer["bytes"]:
            return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"]).copy()
        if "error" not in answer:
            self._end()
        raise _told(answer.get("error", "GDCM ended"), path)

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


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


def _told(text: str, path: Path) -> ReadError | MissingExtraError:
    if "missing dependencies" in text:
        return MissingExtraError("Reading JPEG-compressed DICOM", EXTRA)
    if "less than expected" in text:
        return ReadError(f"{path} is truncated: pixel data are missing at its end.", AGAIN)
    return ReadError(f"The pixel data of {path} cannot be decoded.", AGAIN)
