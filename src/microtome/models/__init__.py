"""Models in: from the user's code and weights, a bundle, a package, or a file of another format to a captured Network.

Nothing here needs torch until a model is loaded.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from microtome.errors import OptionError
from microtome.graph.quiet import first_line
from microtome.models.base import Loaded, Part, Source, Wanted
from microtome.models.unknown import unknown_source
from microtome.plugins import find

if TYPE_CHECKING:
    from microtome.medical.pipeline import Pipeline
    from microtome.models.base import Given

__all__ = ["SOURCES", "Loaded", "Part", "Wanted", "load_model", "looked_for"]

# Asked in this order.
SOURCES = {
    "torchscript": "microtome.models.sources.torchscript",
    "module": "microtome.models.sources.module",
    "bundle": "microtome.models.sources.bundle",
    "nnunet": "microtome.models.sources.nnunet",
    "package": "microtome.models.sources.package",
    "pt2": "microtome.models.sources.pt2",
    "onnx": "microtome.models.sources.onnx_file",
    "keras": "microtome.models.sources.keras_model",
    "tflite": "microtome.models.sources.tflite",
    "saved_model": "microtome.models.sources.saved_model",
    "factory": "microtome.models.sources.factory",
}
FOREIGN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)::(.*)", re.DOTALL)


def load_model(
    source: Given,
    *,
    weights: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    pipeline: Pipeline | None = None,
    device: str = "cpu",
    guess: Callable[[], Pipeline] | None = None,
    part: Part | None = None,
    task: str | None = None,
) -> Loaded:
    """Load and capture a model.

    Args:
        source: a module; `package.module:factory` or `path/to/file.py:factory`; a `.pt2` file, with `pipeline.json`
            beside it if there is one; a MONAI bundle folder; a package folder; a file of ONNX, TorchScript, Keras or
            TensorFlow Lite, or a SavedModel folder. `their_pkg.their_source::anything` is loaded by that module of
            another package: its `load` gets what stands behind the colons.
        weights: for a module or factory: `.pt`, `.pth` or `.safetensors`; for a bundle instead of its own.
        input_shape: (C, *S) to capture with; None takes the pipeline's, or what a bundle says.
        pipeline: used instead of what is declared beside the model.
        device: where the network goes.
        guess: makes a pipeline to take the shape from where nothing else says it; it is not returned.
        part: which fold, configuration or output is meant, where there are several, and whether weights may be missing.
        task: what the network is for, where no pipeline says it: of several outputs the one that fits is taken.

    Raises:
        ReadError: a file is missing, broken or of an unknown kind.
        WeightsError: the weights do not fit, or are not finite.
        ModelError: the user's code fails; the error names its line.
        CaptureError: torch.export cannot capture the network.
        OptionError: the input shape or the device is not known, or an option does not go with the source.
        MissingExtraError: a MONAI bundle without MONAI.
    """
    _check_device(device)
    file, part = Path(weights) if weights is not None else None, part or Part()
    wanted = Wanted(file, input_shape, pipeline, device, guess, task, part)
    foreign = FOREIGN.fullmatch(source) if isinstance(source, str) else None
    if foreign is not None:
        place, rest = foreign.groups()
        found = find(place, {}, "model source", form="their_pkg.their_source", required=("load",))
        return cast(Source, found).load(rest, wanted)
    for found in _sources():
        if found.matches(source):
            return found.load(source, wanted)
    raise unknown_source(Path(str(source)), f"Give {looked_for()}.")


def looked_for() -> str:
    """Return what models look like, for messages and help."""
    *others, last = (source.LOOKS_LIKE for source in _sources() if source.LOOKS_LIKE)
    return f"{', '.join(others)}, or {last}"


def _sources() -> Iterator[Source]:
    """Import one source after the other, as they are asked for."""
    return (cast(Source, importlib.import_module(place)) for place in SOURCES.values())


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises several kinds
        raise OptionError(f"The device {device} cannot be used: {first_line(error)}.", "Use --device cpu.") from error
