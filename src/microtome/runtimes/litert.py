"""LiteRT (TensorFlow Lite): phones, tablets, small boards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import MissingExtraError, ReadError, TargetError
from microtome.runtimes.base import LayerRun
from microtome.runtimes.fixed import FixedSession, port_of
from microtome.types import Array, Batch, Capabilities, OperatorSupport, QType

if TYPE_CHECKING:
    from microtome.graph.network import Network

NAME = "litert"
EXTRA = "litert"
PRECISIONS = ("f32",)
RUNS_INTEGERS = True

UNSIGNED = QType(8, signed=False, symmetric=False)
WEIGHT = QType(8, narrow=True)
METADATA = "microtome"
# Operators with kernels that read and give 8-bit integers, by their kinds in the graph.
INTEGERS = (
    "add",
    "sub",
    "mul",
    "relu",
    "relu6",
    "relu6_",
    "clamp",
    "leaky_relu",
    "prelu",
    "elu",
    "gelu",
    "sigmoid",
    "tanh",
    "silu",
    "silu_",
    "hardswish",
    "hardswish_",
    "softmax",
    "mean",
)
MOVES = (
    "concat",
    "max_pool",
    "reshape",
    "transpose",
    "pad",
    "slice",
    "select",
    "squeeze",
    "unsqueeze",
    "pixel_shuffle",
)


def capabilities() -> Capabilities:
    """Return what LiteRT runs in 8 bits: graphs that are in integers from end to end.

    3-D layers run as 2-D ones over slices, see `tflite.layers`.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
    """
    _interpreter()
    support = OperatorSupport(UNSIGNED, WEIGHT)
    return Capabilities(
        target=NAME,
        operators={"conv": support, "conv_transpose": replace(support, spatial_dims=(2, 3)), "linear": support},
        transparent=frozenset(MOVES),
        integers=dict.fromkeys(INTEGERS, UNSIGNED),
        same_grid=frozenset({"avg_pool", "upsample_bilinear2d", "upsample_trilinear3d"}),
    )


def export(network: Network, folder: Path) -> Path:
    """Write `model.tflite`; inputs and outputs have their channels last, as phones have images.

    Raises:
        TargetError: an operator has no form in TensorFlow Lite; the error names it and its layer.
    """
    from microtome.graph.rewriting.bias_room import room_for_biases
    from microtome.graph.structure.attention import expand_attention
    from microtome.runtimes.onnx_file import in_containers
    from microtome.runtimes.tflite.write import tflite

    path = folder / "model.tflite"
    path.write_bytes(tflite(in_containers(expand_attention(room_for_biases(network))), METADATA))
    return path


def files(path: Path) -> tuple[Path, ...]:
    """Return the one file."""
    return (path,)


def measurable() -> bool:
    """Return whether ai-edge-litert is installed."""
    return find_spec("ai_edge_litert") is not None


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.tflite` file; `precision` must be f32."""
    assert precision in PRECISIONS
    return Session(path, threads=threads)


def open_content(path: Path, files: Mapping[str, bytes], *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.tflite` file that is in memory."""
    assert precision in PRECISIONS
    return Session(path, threads=threads, content=files[path.name])


class Session(FixedSession):
    """A file that microtome wrote, on LiteRT's interpreter with its delegate for the CPU, XNNPACK."""

    target = "LiteRT"

    def __init__(self, path: Path, *, threads: int = 0, content: bytes | None = None) -> None:
        """Read the file, or take its content.

        Raises:
            MissingExtraError: ai-edge-litert is not installed.
            ReadError: the file is missing, broken, or not from microtome.
            TargetError: it has an operator that this version of LiteRT lacks.
        """
        if content is None and not path.exists():
            raise ReadError(f"{path} does not exist.", "Give the model.tflite of a package.")
        self._path = path
        self._content = path.read_bytes() if content is None else content
        self._threads = threads or None
        ports = _metadata(self._content, path)
        self.inputs, self.outputs = (tuple(map(port_of, ports[key])) for key in ("inputs", "outputs"))
        self._runner = self._open()
        found = self._runner.get_signature_runner()
        details = found.get_input_details(), found.get_output_details()
        self._given = [details[0][port.name] for port in self.inputs]
        self._returned = [details[1][port.name] for port in self.outputs]

    def layer_runs(self, x: Batch) -> tuple[LayerRun, ...]:
        """Run `x`, and return each operator of the file with the kernel that has it; times are not measured."""
        self.run(x)
        delegated = _is_delegated(self._runner)
        plain = self._open(delegate=False)
        tensors = {detail["index"]: detail for detail in plain.get_tensor_details()}
        runs = []
        for operator in plain._get_ops_details():
            outputs = [tensors[number] for number in operator["outputs"] if number in tensors]
            inputs = [tensors[number] for number in operator["inputs"] if number in tensors]
            values = [one for one in inputs if one["dtype"] != np.int32]  # the others are shapes and biases
            integer = outputs and all(one["dtype"] == np.int8 for one in (*values, *outputs))
            kernel = "XNNPACK" if delegated else "LiteRT"
            name = outputs[0]["name"].split(";")[0] if outputs else operator["op_name"]
            runs.append(LayerRun((name,), operator["op_name"], "int8" if integer else "f32", kernel, None))
        return tuple(runs)

    def _one(self, given: Sequence[Array]) -> list[Array]:
        """Run a batch of one."""
        for array, detail in zip(given, self._given, strict=True):
            stored = np.moveaxis(array, 1, -1) if array.ndim >= 3 else array
            scale, zero = detail["quantization"]
            if scale:
                integers = np.rint(stored * (np.float32(1) / np.float32(scale))) + zero
                stored = integers.clip(-128, 127).astype(np.int8)
            self._runner.set_tensor(detail["index"], np.ascontiguousarray(stored))
        self._runner.invoke()
        found = []
        for detail in self._returned:
            value = self._runner.get_tensor(detail["index"])
            scale, zero = detail["quantization"]
            real = (value.astype(np.float32) - zero) * np.float32(scale) if scale else value
            found.append(np.ascontiguousarray(np.moveaxis(real, -1, 1) if real.ndim >= 3 else real, np.float32))
        return found

    def _open(self, *, delegate: bool = True) -> Any:
        interpreter = _interpreter()
        kinds = interpreter.OpResolverType
        resolver = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            opened = interpreter.Interpreter(
                model_content=self._content, num_threads=self._threads, experimental_op_resolver_type=resolver
            )
            opened.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            if "version" in reason or "resolve" in reason:
                raise TargetError(f"this version of LiteRT lacks an operator of the file: {reason}.") from error
            raise ReadError(f"{self._path} is not a model that LiteRT can read: {reason}.") from error
        return opened


def _interpreter() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise MissingExtraError("The target litert", EXTRA) from error
    return interpreter


def _is_delegated(interpreter: Any) -> bool:
    return any(operator["op_name"] == "DELEGATE" for operator in interpreter._get_ops_details())


def _metadata(content: bytes, path: Path) -> dict[str, Any]:
    """Return what microtome noted in a file.

    Raises:
        ReadError: it is none of TensorFlow Lite, damaged, or not from microtome.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        if content[4:8] != b"TFL3":
            raise ValueError
        model = schema.Model.GetRootAs(content, 0)
        for place in range(model.MetadataLength()):
            entry = model.Metadata(place)
            if entry.Name() == METADATA.encode():
                found: dict[str, Any] = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
                return found
    except Exception as error:
        raise ReadError(f"{path} is no TensorFlow Lite file, or a damaged one.", "Export it again.") from error
    raise ReadError(f"{path} was not written by microtome.", "Give the model.tflite of a package.")
