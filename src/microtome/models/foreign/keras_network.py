"""From a Keras model to a captured network that was compared with it; channels come out first."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import MicrotomeError, MissingExtraError, ModelError
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import SIDE, Loaded, Wanted, shape_of
from microtome.models.foreign.onnx_network import network_of as onnx_network_of
from microtome.models.foreign.reading import read_onnx
from microtome.models.foreign.values import Array

OPSET = 20
# From the layout of Keras' kernels to that of ONNX's: convolutions, transposed ones, matrices.
KERNELS = {5: ((4, 3, 0, 1, 2),), 4: ((3, 2, 0, 1), (2, 3, 0, 1)), 3: ((2, 1, 0),), 2: ((0, 1), (1, 0))}


class Called(nn.Module):
    """A Keras model as a module, in inference."""

    def __init__(self, model: Any) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Run it."""
        return self.model(x, training=False)


def network_of(model: Any, path: Path, wanted: Wanted) -> Loaded:
    """Translate, capture and check a model.

    Raises:
        ModelError: several inputs, a layer without a translation, or outputs that differ.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    if len(model.inputs) != 1:
        names = ", ".join(one.name for one in model.inputs)
        raise ModelError(f"{path} takes {len(model.inputs)} inputs ({names}).", "Export it as ONNX, which has names.")
    sizes = list(model.inputs[0].shape)
    if len(sizes) not in (4, 5):
        raise ModelError(f"{path} takes an input of {len(sizes)} axes.", "microtome compresses networks of images.")
    last = _channels_last(model)
    own = [sizes[-1], *sizes[1:-1]] if last else sizes[1:]
    shape = _shape(own, wanted, path)
    module = Called(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        proto = _exported(module, shape, last, Path(folder) / "model.onnx", path)
        _name_weights(proto, model)
        reference = _reference(module, last, [value.name for value in proto.graph.output])
        loaded = onnx_network_of(proto, path, replace(wanted, input_shape=shape), reference=(reference, "Keras"))
    return loaded


def _channels_last(model: Any) -> bool:
    """Return whether channels are the last axis: what the layers say."""
    import keras

    said = {layer.data_format for layer in model._flatten_layers() if getattr(layer, "data_format", None) is not None}
    return (said or {keras.config.image_data_format()}) != {"channels_first"}


def _shape(own: list[int | None], wanted: Wanted, path: Path) -> tuple[int, ...]:
    if None not in own and wanted.input_shape is None:
        return tuple(n or 1 for n in own)
    asked = wanted.input_shape or wanted.pipeline is not None or wanted.guess is not None
    known = tuple(n or SIDE for n in own) if own[0] is not None and not asked else None
    return shape_of(wanted, of=str(path), known=known)


def _exported(module: nn.Module, shape: tuple[int, ...], last: bool, place: Path, path: Path) -> Any:
    """Write the model as ONNX, with a free batch, and read that."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Reading Keras models", "keras") from error
    example = torch.zeros((2, *shape[1:], shape[0]) if last else (2, *shape))
    try:
        with torch.no_grad(), quiet():
            free = ({0: torch.export.Dim.AUTO},)
            program = torch.export.export(module, (example,), dynamic_shapes=free)
            torch.onnx.export(program, f=str(place), dynamo=True, opset_version=OPSET, verbose=False)
    except MicrotomeError:
        raise
    except Exception as error:  # Keras and torch raise many kinds
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            f"{path} cannot be translated: {first_line(cause)}.",
            "Give the shape that it takes with --input-shape C,H,W (channels first here), or export it as ONNX.",
        ) from error
    return read_onnx(place)[0]


def _name_weights(proto: Any, model: Any) -> None:
    """Name the tensors of the file that are a layer's kernel after that layer."""
    import keras
    from onnx import numpy_helper

    known: dict[bytes, str] = {}
    for weight in model.weights:
        with quiet():
            array = np.array(keras.ops.convert_to_numpy(weight), np.float32)
        for order in KERNELS.get(array.ndim, ()):
            known.setdefault(np.ascontiguousarray(array.transpose(order)).tobytes(), f"{_layer(weight)}.weight")
    names: dict[str, str] = {}
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1 and (name := known.get(numpy_helper.to_array(tensor).tobytes())):
            names[tensor.name] = name
            tensor.name = name
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _layer(weight: Any) -> str:
    path = str(weight.path).split("/")
    return ".".join(path[:-1]) or path[0]


def _reference(module: nn.Module, last: bool, outputs: list[str]) -> Any:
    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        (array,) = given.values()
        moved = np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array
        with torch.no_grad(), quiet():
            made = module(torch.from_numpy(moved))
        leaves = [leaf.float().numpy() for leaf in torch.utils._pytree.tree_leaves(made)]
        if last:
            leaves = [np.moveaxis(leaf, -1, 1) if leaf.ndim > 2 else leaf for leaf in leaves]
        return dict(zip(outputs, leaves, strict=True))

    return run
