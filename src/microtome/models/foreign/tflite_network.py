"""From a TensorFlow Lite file to a captured network that was compared with LiteRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import MissingExtraError
from microtome.models.base import Loaded, Wanted
from microtome.models.foreign.check import Reference
from microtome.models.foreign.onnx_network import network_of as onnx_network_of
from microtome.models.foreign.values import Array


def network_of(path: Path, wanted: Wanted) -> Loaded:
    """Translate, capture and check a file.

    Raises:
        MissingExtraError: onnx or ai-edge-litert is not installed.
        ReadError: the file is truncated.
        ModelError: an operator has no translation, or the outputs differ.
    """
    try:
        from microtome.models.foreign.tflite_graph import TFLite
    except ImportError as error:
        raise MissingExtraError("Reading TensorFlow Lite files", "litert") from error
    model = TFLite(path).onnx()
    outputs = [value.name for value in model.graph.output]
    return onnx_network_of(model, path, wanted, reference=(_reference(path, outputs), "LiteRT"))


def _reference(path: Path, outputs: list[str]) -> Reference:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=kind, num_threads=1)

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        details = interpreter.get_input_details()
        moved = [np.moveaxis(a, 1, -1) if _is_last(d, a) else a for d, a in zip(details, given.values(), strict=True)]
        for detail, array in zip(details, moved, strict=True):
            interpreter.resize_tensor_input(detail["index"], array.shape)
        interpreter.allocate_tensors()
        for detail, array in zip(interpreter.get_input_details(), moved, strict=True):
            interpreter.set_tensor(detail["index"], _stored(detail, array))
        interpreter.invoke()
        found = {}
        for name, detail in zip(outputs, interpreter.get_output_details(), strict=True):
            value = _meant(detail, interpreter.get_tensor(detail["index"]))
            found[name] = np.moveaxis(value, -1, 1) if value.ndim > 3 else value
        return found

    return run


def _is_last(detail: Any, array: Array) -> bool:
    """Whether the file takes channels last: TensorFlow Lite's convolutions know no other layout."""
    return array.ndim > 3 and int(detail["shape"][-1]) == array.shape[1]


def _stored(detail: Any, array: Array) -> Array:
    scale, zero = detail["quantization"]
    kind = np.dtype(detail["dtype"])
    if not scale or kind.kind == "f":
        return np.ascontiguousarray(array.astype(kind))
    limits = np.iinfo(kind)
    stored: Array = np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(kind)
    return stored


def _meant(detail: Any, array: Array) -> Array:
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale and array.dtype.kind != "f" else array
