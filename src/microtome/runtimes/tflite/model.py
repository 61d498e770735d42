"""A TensorFlow Lite model as it is put together: tensors, constants, operators; then the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.types import Array

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
DTYPES: Mapping[str, str] = {
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FLOAT32",
    "float16": "FLOAT16",
}
# The first version of a builtin that takes 8-bit integers, or what else is asked of it here, is 2 but for these.
VERSIONS: Mapping[str, tuple[int, int]] = {  # (float, int8)
    "CONV_2D": (1, 3),
    "DEPTHWISE_CONV_2D": (1, 3),
    "FULLY_CONNECTED": (5, 12),
    "TRANSPOSE_CONV": (3, 3),
    "RESIZE_BILINEAR": (3, 3),
    "RESIZE_NEAREST_NEIGHBOR": (3, 3),
    "RESHAPE": (1, 1),
    "PRELU": (1, 1),
    "ELU": (1, 1),
    "HARD_SWISH": (1, 1),
    "QUANTIZE": (1, 2),
    "DEQUANTIZE": (3, 2),
    "STRIDED_SLICE": (2, 2),
}
DEFAULT_VERSION = (1, 2)


@dataclass(frozen=True)
class Grid:
    """Where the integers of a tensor lie: real = scale · (integer - zero point).

    Attributes:
        scale: float32, () or (C,).
        zero_point: int64, likewise.
        axis: of the channels in the stored tensor; None where there is one scale.
    """

    scale: Array
    zero_point: Array
    axis: int | None = None

    def same(self, other: Grid | None) -> bool:
        """Whether both are one grid."""
        return (
            other is not None
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


def grid_of(scale: float, zero_point: int) -> Grid:
    """Return the grid of one scale."""
    return Grid(np.array(scale, np.float32), np.array(zero_point, np.int64))


class Model:
    """Tensors and operators in order; a batch of one.

    Tensors are known by their number.
    """

    def __init__(self) -> None:
        """Start empty."""
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._tensors: list[Any] = []
        self._shapes: list[tuple[int, ...]] = []
        self._grids: list[Grid | None] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: list[Any] = [self._buffer(None)]  # the first is empty by convention
        self._names: set[str] = set()
        self._known: dict[tuple[Any, ...], int] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: str, grid: Grid | None = None) -> int:
        """Add a tensor that an operator fills."""
        return self._add(name, tuple(int(size) for size in shape), dtype, grid, 0)

    def constant(self, name: str, value: Array, grid: Grid | None = None) -> int:
        """Add a tensor with fixed values; small ones that are there already are shared."""
        value = np.ascontiguousarray(value)
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= 64 and grid is None else None
        if key is not None and key in self._known:
            return self._known[key]
        self._buffers.append(self._buffer(value))
        number = self._add(name, value.shape, value.dtype.name, grid, len(self._buffers) - 1)
        if key is not None:
            self._known[key] = number
        return number

    def operator(self, code: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """Add an operator of TensorFlow Lite's builtins and return its output's number.

        Args:
            code: such as `CONV_2D`.
            inputs: numbers of tensors; -1 where an optional one is missing.
            output: likewise.
            **options: fields of the operator's options.
        """
        schema = self._schema
        integer = self.dtype(output) in ("int8", "int16")
        version = VERSIONS.get(code, DEFAULT_VERSION)[integer]
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        kind = OPTIONS.get(code)
        if kind is not None:
            chosen = getattr(schema, f"{kind}T")()
            for name, value in options.items():
                assert hasattr(chosen, name), (code, name)
                setattr(chosen, name, value)
            made.builtinOptionsType, made.builtinOptions = getattr(schema.BuiltinOptions, kind), chosen
        self._operators.append(made)
        return output

    def shape(self, number: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[number]

    def grid(self, number: int) -> Grid | None:
        """Return a tensor's grid; None where it holds real numbers."""
        return self._grids[number]

    def dtype(self, number: int) -> str:
        """Return a tensor's type, as numpy calls it."""
        return next(name for name, code in DTYPES.items() if self._code(code) == self._tensors[number].type)

    def name(self, number: int) -> str:
        """Return a tensor's name."""
        return str(self._tensors[number].name)

    def write(self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, bytes]) -> bytes:
        """Return the file.

        Args:
            inputs: names under which the signature has them, and tensors.
            outputs: likewise.
            metadata: by name.
        """
        import flatbuffers

        schema = self._schema
        graph = schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self._tensors, self._operators, "main"
        graph.inputs = np.array([*inputs.values()], np.int32)
        graph.outputs = np.array([*outputs.values()], np.int32)
        model = schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, "microtome"
        model.subgraphs = [graph]
        model.operatorCodes = []
        for code, version in self._codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.version = getattr(schema.BuiltinOperator, code), version
            made.deprecatedBuiltinCode = min(made.builtinCode, 127)
            model.operatorCodes.append(made)
        model.metadata = []
        for name, content in metadata.items():
            self._buffers.append(self._buffer(np.frombuffer(content, np.uint8)))
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, len(self._buffers) - 1
            model.metadata.append(entry)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = self._mapped(inputs), self._mapped(outputs)
        model.signatureDefs = [signature]
        model.buffers = self._buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _mapped(self, tensors: Mapping[str, int]) -> list[Any]:
        found = []
        for name, number in tensors.items():
            entry = self._schema.TensorMapT()
            entry.name, entry.tensorIndex = name, number
            found.append(entry)
        return found

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, grid: Grid | None, buffer: int) -> int:
        made = self._schema.TensorT()
        made.name, made.shape, made.type = self._free(name), np.array(shape, np.int32), self._code(DTYPES[dtype])
        made.buffer = buffer
        if grid is not None:
            found = self._schema.QuantizationParametersT()
            found.scale = np.atleast_1d(grid.scale).astype(np.float32)
            found.zeroPoint = np.atleast_1d(grid.zero_point).astype(np.int64)
            found.quantizedDimension = grid.axis or 0
            made.quantization = found
        self._tensors.append(made)
        self._shapes.append(shape)
        self._grids.append(grid)
        return len(self._tensors) - 1

    def _free(self, name: str) -> str:
        found, count = name, 1
        while found in self._names:
            count += 1
            found = f"{name};{count}"
        self._names.add(found)
        return found

    def _code(self, name: str) -> int:
        return int(getattr(self._schema.TensorType, name))

    def _buffer(self, value: Array | None) -> Any:
        made = self._schema.BufferT()
        if value is not None:
            made.data = np.frombuffer(value.tobytes(), np.uint8)
        return made


OPTIONS: Mapping[str, str] = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "CONCATENATION": "ConcatenationOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "GELU": "GeluOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "TRANSPOSE": "TransposeOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "QUANTIZE": "QuantizeOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "SQUARED_DIFFERENCE": "SquaredDifferenceOptions",
}
