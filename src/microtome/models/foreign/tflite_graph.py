"""A TensorFlow Lite file as an ONNX graph: each operator between the transpositions that its channels-last layout asks.

The schema is TensorFlow's `lite/schema/schema.fbs`, as ai-edge-litert ships it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from microtome.errors import MissingExtraError, ModelError, ReadError
from microtome.graph.quiet import first_line
from microtome.models.foreign.values import Array

OPSET = 18
FIRST, LAST = {4: [0, 3, 1, 2], 5: [0, 4, 1, 2, 3]}, {4: [0, 2, 3, 1], 5: [0, 2, 3, 4, 1]}
WAY = "Export the network as ONNX."
TYPES = {
    0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64,
    6: np.bool_, 7: np.int16, 9: np.int8, 10: np.float64,
}  # fmt: skip
ROUNDED = {3, 7, 9}  # types of integers that stand for numbers, where they have a scale
CLIPS = {1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}  # fused RELU, RELU_N1_TO_1, RELU6


class TFLite:
    """A file and the ONNX graph that is made of it."""

    def __init__(self, path: Path) -> None:
        """Read the file and translate its first graph.

        Raises:
            MissingExtraError: ai-edge-litert is not installed.
            ReadError: the file is truncated.
            ModelError: an operator has no translation; the error names it.
        """
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise MissingExtraError("Reading TensorFlow Lite files", "litert") from error
        from microtome.models.foreign.tflite_operators import TABLE

        try:
            self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
            self.graph = self.model.subgraphs[0]
            self.tensors = self.graph.tensors
            self.codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in self.model.operatorCodes]
        except Exception as error:  # flatbuffers raises what NumPy and struct do
            raise ReadError(
                f"{path} is truncated or no TensorFlow Lite file ({first_line(error)}).", "Copy the file again."
            ) from error
        titles = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.ready: dict[int, str] = {}  # tensors by number → the ONNX value of what they stand for
        self.operator: Any = None
        for number in self.graph.inputs:
            self.ready[number] = self.on_grid(number, self.name(number))
        for operator in self.graph.operators:
            title = titles.get(self.codes[operator.opcodeIndex], "CUSTOM")
            if title not in TABLE:
                named = self.name(operator.outputs[0])
                raise ModelError(
                    f"the file has the operator {title} ({named!r}), which microtome cannot translate.",
                    "Export the network as ONNX instead, for example with tf2onnx.",
                )
            self.operator = operator
            TABLE[title](self)

    def onnx(self) -> Any:
        """Return the ONNX model."""
        inputs = [self._info(number, self.name(number)) for number in self.graph.inputs]
        outputs = [
            helper.make_tensor_value_info(self.ready[number], onnx.TensorProto.FLOAT, None)
            for number in self.graph.outputs
        ]
        graph = helper.make_graph(self.nodes, "tflite", inputs, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])

    def _info(self, number: int, name: str) -> Any:
        tensor = self.tensors[number]
        signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        shape = [f"free_{k}" if n < 0 else int(n) for k, n in enumerate(signature)]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    def name(self, number: int) -> str:
        """Return a tensor's name."""
        return f"{self.tensors[number].name.decode(errors='replace')}"

    def title(self, op: str) -> str:
        """Return a name for the node that the operator at hand becomes: that of the layer, and what it is."""
        return f"{self.name(self.operator.outputs[0]).partition(';')[0]}/{op}"

    @property
    def settings(self) -> Any:
        """The options of the operator at hand."""
        return self.operator.builtinOptions

    def shape(self, place: int) -> list[int]:
        """Return the shape of an input of the operator at hand."""
        return [int(n) for n in self.tensors[self.operator.inputs[place]].shape]

    def has(self, place: int) -> bool:
        """Whether the operator at hand has such an input."""
        return place < len(self.operator.inputs) and self.operator.inputs[place] >= 0

    def array(self, place: int) -> Array | None:
        """Return an input's numbers as they are stored; None if it is computed."""
        return self.stored(self.operator.inputs[place])

    def stored(self, number: int) -> Array | None:
        """Return a tensor's numbers as they are stored; None if it is computed."""
        tensor = self.tensors[number]
        data = self.model.buffers[tensor.buffer].data
        if data is None or len(data) == 0:
            return None
        if tensor.type not in TYPES:
            raise ModelError(
                f"the tensor {self.name(number)!r} has a type that is not read.", "Convert it with 8 bits."
            )
        shape = [] if tensor.shape is None else [int(n) for n in tensor.shape]
        values: Array = np.frombuffer(np.asarray(data, np.uint8).tobytes(), TYPES[tensor.type]).reshape(shape)
        return values

    def numbers(self, place: int) -> list[int]:
        """Return an input that holds sizes, axes and the like.

        Raises:
            ModelError: it is computed.
        """
        array = self.array(place)
        if array is None:
            raise ModelError(
                f"input {place} of {self.name(self.operator.outputs[0])!r} is computed.", "Export it with fixed sizes."
            )
        return [int(n) for n in array.reshape(-1)]

    def grid(self, number: int) -> tuple[Array, Array, int] | None:
        """Return scale, zero point and axis of a tensor of integers; None if it has none."""
        q = self.tensors[number].quantization
        if q is None or q.scale is None or len(q.scale) == 0:
            return None
        return np.asarray(q.scale, np.float32), np.asarray(q.zeroPoint, np.int64), int(q.quantizedDimension)

    def value(self, place: int) -> str:
        """Return the ONNX value of an input of the operator at hand."""
        number = self.operator.inputs[place]
        if number not in self.ready:
            array = self.stored(number)
            assert array is not None
            self.ready[number] = self.constant(number, array)
        return self.ready[number]

    def constant(self, number: int, array: Array, order: Sequence[int] | None = None, suffix: str = "") -> str:
        """Store a tensor, its axes in another order, on its grid, and return the value that it stands for."""
        name, grid = f"{self.name(number)}{suffix}", self.grid(number)
        moved = array if order is None else np.ascontiguousarray(array.transpose(order))
        if grid is None:
            wide = moved.astype(np.float32) if moved.dtype.kind == "f" else moved
            return self.store(name, wide.astype(np.int64) if wide.dtype == np.int32 else wide)
        scale, zero, axis = grid
        if self.tensors[number].type not in ROUNDED or (order is not None and moved.size == 0):
            return self.store(name, (moved * scale.astype(np.float64)).astype(np.float32))  # a bias
        axis = axis if order is None else list(order).index(axis)
        return self._dequantized(self.store(f"{name}_q", moved), name, scale, zero.astype(moved.dtype), axis)

    def _dequantized(self, source: str, name: str, scale: Array, zero: Array, axis: int) -> str:
        single = scale.size == 1
        scales = self.store(f"{name}_scale", scale.reshape(()) if single else scale)
        zeros = self.store(f"{name}_zero", zero.reshape(-1)[0] if single else np.broadcast_to(zero, scale.shape))
        return self.emit(
            "DequantizeLinear", [source, scales, zeros], f"{name}_float", **({} if single else {"axis": axis})
        )

    def on_grid(self, number: int, value: str) -> str:
        """Return a value rounded to a tensor's grid; as it is where that has none."""
        grid, kind = self.grid(number), self.tensors[number].type
        if grid is None or kind not in ROUNDED:
            return value
        name, (scale, zero, axis) = self.name(number), grid
        zeros = self.store(f"{name}_zero", zero.astype(TYPES[kind]).reshape(-1)[0])
        scales = self.store(f"{name}_scale", scale.reshape(-1)[0])
        return self._dequantized(
            self.emit("QuantizeLinear", [value, scales, zeros], f"{name}_rounded"),
            name,
            scale,
            zero.astype(TYPES[kind]),
            axis,
        )

    def store(self, name: str, array: Any) -> str:
        """Keep a constant and return its name."""
        self.initializers[name] = numpy_helper.from_array(np.array(array), name)
        return name

    def emit(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node and return its output."""
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def done(self, value: str, activation: int = 0, place: int = 0) -> None:
        """Name a value an output of the operator at hand, after its fused activation and on its grid."""
        if activation in CLIPS:
            low, high = CLIPS[activation]
            bounds = [self.store("clip_low" + str(low), np.float32(low))]
            bounds += [self.store("clip_high" + str(high), np.float32(high))] if high is not None else []
            value = self.emit("Clip", [value, *bounds])
        elif activation:
            raise ModelError(f"an activation fused into {value!r} is not translated.", "Export the network as ONNX.")
        number = self.operator.outputs[place]
        self.ready[number] = self.on_grid(number, self.emit("Identity", [value], self.name(number)))


Operator = Callable[[TFLite], None]


def first(f: TFLite, value: str, rank: int = 4) -> str:
    """Put the channels first."""
    return f.emit("Transpose", [value], perm=FIRST[rank])


def last(f: TFLite, value: str, rank: int = 4) -> str:
    """Put the channels last again."""
    return f.emit("Transpose", [value], perm=LAST[rank])


def sizes(f: TFLite, values: list[int]) -> str:
    """Store sizes or axes."""
    return f.store(f"sizes_{len(f.nodes)}_{len(f.initializers)}", np.array(values, np.int64))
