"""A TensorFlow SavedModel folder, by way of tf2onnx."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import MissingExtraError, OptionError
from microtome.models.base import Loaded, Wanted

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "saved_model"
LOOKS_LIKE = "a TensorFlow SavedModel folder"


def matches(source: Given) -> bool:
    """Whether it is a folder with a saved graph."""
    folder = Path(str(source))
    return any((folder / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def load(source: Given, wanted: Wanted) -> Loaded:
    """Convert, translate and capture it, and compare it with TensorFlow."""
    folder = Path(str(source))
    if wanted.weights is not None:
        raise OptionError(f"{folder} has its own weights.", "Leave --weights out.")
    if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tf2onnx")):
        raise MissingExtraError("SavedModel folders", "tensorflow")
    from microtome.models.foreign.tensorflow_network import network_of

    files = (folder / "saved_model.pb", *sorted((folder / "variables").glob("variables.*")))
    found = tuple(file for file in files if file.is_file())
    return replace(network_of(folder, wanted), title=folder.resolve().name, files=found)
