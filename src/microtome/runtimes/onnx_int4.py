"""Weights of at most 4 bits stored as INT4, two to a byte.

Only where nothing but weights is quantized: a layer with 4-bit weights *and* integer activations runs in 8-bit kernels
from 8-bit weights, and in float from 4-bit ones (OpenVINO 2026.4, ONNX Runtime 1.31).
"""

from __future__ import annotations

from typing import Any

from microtome.errors import MissingExtraError

LARGEST, SMALLEST = 7, -8


def store_in_4_bits(model: Any) -> None:
    """Replace the int8 weights of an ONNX model that fit into 4 bits, and their zero points, by INT4 tensors.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingExtraError("ONNX export", "onnxruntime") from error

    def narrow(tensor: Any, name: str) -> Any:
        values = numpy_helper.to_array(tensor)
        return helper.make_tensor(name, TensorProto.INT4, values.shape, values.reshape(-1).astype(int).tolist())

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        stored = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.data_type != TensorProto.INT8:
            continue
        values = numpy_helper.to_array(stored)
        if values.size and (values.max() > LARGEST or values.min() < SMALLEST):
            continue
        stored.CopyFrom(narrow(stored, stored.name))
        if len(node.input) == 3:
            zero_point = narrow(tensors[node.input[2]], f"{stored.name}_zero_point")
            model.graph.initializer.append(zero_point)
            node.input[2] = zero_point.name
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in tensors.items():
        if name not in used:
            model.graph.initializer.remove(tensor)
