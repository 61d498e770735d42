"""An ONNX file, with the files of weights beside it if it has such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import OptionError
from microtome.models.base import Loaded, Wanted
from microtome.models.foreign.reading import is_onnx

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "onnx"
LOOKS_LIKE = "an .onnx file"


def matches(source: Given) -> bool:
    """Whether it is called so, or begins so."""
    path = Path(str(source))
    if path.is_dir():
        return False
    if path.suffix == ".onnx" or not path.is_file():
        return path.suffix == ".onnx"
    with path.open("rb") as file:
        return path.suffix not in (".pt", ".pth", ".pt2", ".py") and is_onnx(file.read(8))


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read, translate and capture it, and compare it with ONNX Runtime."""
    from microtome.models.foreign.onnx_network import network_of
    from microtome.models.foreign.reading import read_onnx

    path = Path(str(source))
    if wanted.weights is not None:
        raise OptionError(f"{path} has its own weights.", "Leave --weights out.")
    model, others = read_onnx(path)
    return replace(network_of(model, path, wanted), title=path.stem, files=(path, *others))
