"""A Keras model: `.keras` or `.h5`, run by Keras 3 on PyTorch."""

from __future__ import annotations

import contextlib
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import MissingExtraError, ModelError, OptionError, ReadError
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import Loaded, Wanted

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "keras"
LOOKS_LIKE = "a Keras model (.keras, .h5)"
HDF5 = b"\x89HDF\r\n\x1a\n"


def matches(source: Given) -> bool:
    """Whether it is an archive of Keras', or an HDF5 file of that name."""
    path = Path(str(source))
    if path.suffix == ".keras" and not path.is_dir():
        return True
    if not path.is_file():
        return path.suffix in (".h5", ".hdf5") and not path.is_dir()
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile, ValueError, OSError):
            return {"config.json", "model.weights.h5"} <= set(zipfile.ZipFile(path).namelist())
    with path.open("rb") as file:
        return path.suffix in (".h5", ".hdf5") and file.read(8) == HDF5


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read it, translate it by way of ONNX, capture it, and compare it with Keras."""
    from microtome.models.foreign.keras_network import network_of

    path = Path(str(source))
    if wanted.weights is not None:
        raise OptionError(f"{path} has its own weights.", "Leave --weights out.")
    if not path.is_file():
        raise ReadError(f"{path} does not exist.", "Give the .keras or .h5 file.")
    loaded = network_of(_read(path), path, wanted)
    return replace(loaded, title=path.stem, files=(path,))


def _read(path: Path) -> Any:
    keras = _keras()
    try:
        with quiet():
            return keras.saving.load_model(str(path), compile=False)
    except Exception as error:  # Keras raises many kinds
        text = first_line(error)
        if path.name.endswith(".weights.h5") or "No model config" in str(error) or "model_config" in str(error):
            raise ModelError(
                f"{path} holds weights but no network.", "Save the whole model: model.save('model.keras')."
            ) from error
        if "Lambda" in str(error) or "safe_mode" in str(error):
            raise ModelError(
                f"{path} holds Python code (a Lambda layer), which is not run.",
                "Replace that layer by a Keras operation, and save the model again.",
            ) from error
        raise ModelError(
            f"Keras cannot read {path}: {text}.",
            "Copy it again; a model with layers of its own has to be exported as ONNX: model.export('m.onnx', "
            "format='onnx').",
        ) from error


def _keras() -> Any:
    """Import Keras, on PyTorch."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, when it is imported
    try:
        with quiet():
            import keras
    except ImportError as error:
        raise MissingExtraError("Keras models", "keras") from error
    if keras.backend.backend() != "torch":
        raise ModelError(
            f"Keras runs on {keras.backend.backend()} in this process.",
            "Set the environment variable KERAS_BACKEND=torch, or export the model as ONNX.",
        )
    return keras
