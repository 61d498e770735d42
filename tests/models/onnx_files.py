"""Small ONNX files, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def node(op: str, inputs: Sequence[str], outputs: Sequence[str] | str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its first output."""
    outputs = [outputs] if isinstance(outputs, str) else list(outputs)
    return helper.make_node(op, list(inputs), outputs, name=f"node_{outputs[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    shape: Sequence[int | str] = ("n", 3, 8, 8),
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
) -> onnx.ModelProto:
    """A model of one input `x`."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def saved(path: Path, made: onnx.ModelProto) -> Path:
    """Write a model, and return where."""
    onnx.save(made, str(path))
    return path


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights."""
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)
