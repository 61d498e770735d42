"""A TensorFlow Lite file (`.tflite`), its grids taken as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import OptionError, ReadError
from microtome.models.base import Loaded, Wanted

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "tflite"
LOOKS_LIKE = "a .tflite file"
MAGIC = b"TFL3"


def matches(source: Given) -> bool:
    """Whether it is called so, or marked so."""
    path = Path(str(source))
    if path.is_dir():
        return False
    if path.suffix == ".tflite" or not path.is_file():
        return path.suffix == ".tflite"
    with path.open("rb") as file:
        return file.read(8)[4:] == MAGIC


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read it, translate it by way of ONNX, capture it, and compare it with LiteRT."""
    path = Path(str(source))
    if wanted.weights is not None:
        raise OptionError(f"{path} has its own weights.", "Leave --weights out.")
    if not path.is_file():
        raise ReadError(f"{path} does not exist.", "Give the .tflite file.")
    with path.open("rb") as file:
        if file.read(8)[4:] != MAGIC:
            raise ReadError(f"{path} is no TensorFlow Lite file.", "Copy it again from its source.")
    from microtome.models.foreign.tflite_network import network_of

    return replace(network_of(path, wanted), title=path.stem, files=(path,))
