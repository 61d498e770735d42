"""TensorFlow Lite in, from a file that is put together here."""

from __future__ import annotations

import flatbuffers
import numpy as np
import pytest
import torch

from microtome.errors import ModelError, ReadError
from microtome.graph.quantizers import quantizers
from microtome.models import load_model

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
SIZE, SCALE, ZERO = 8, 0.05, -10
CONV_2D, MAX_POOL_2D, DEPTHWISE, L2_NORM = 3, 17, 4, 11


def tensor(name, shape, kind, buffer, scale=None, zero=None, axis=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name.encode(), shape, kind, buffer
    if scale is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = scale, zero
        made.quantization.quantizedDimension = axis
    return made


def operator(code, inputs, outputs, kind, **options):
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
    made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    made.builtinOptions = getattr(schema, f"{kind}T")()
    for name, value in options.items():
        setattr(made.builtinOptions, name, value)
    return made


def written(path, *, integers, codes=(CONV_2D, MAX_POOL_2D)):
    """A convolution with stride 2, uneven padding and ReLU6, and a pooling; channels last."""
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    scale, bias = rng.uniform(0.002, 0.01, 4), rng.integers(-500, 500, 4).astype(np.int32)
    weight = q if integers else (q * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    stored_bias = bias if integers else (bias * scale * SCALE).astype(np.float32)
    half, kind = SIZE // 2, 9 if integers else 0
    act = {"scale": [SCALE], "zero": [ZERO]} if integers else {}
    out = {"scale": [6 / 255], "zero": [-128]} if integers else {}
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("image", [1, SIZE, SIZE, 3], kind, 0, **act),
        tensor("w", [4, 3, 3, 3], kind, 1, **({"scale": list(scale), "zero": [0] * 4} if integers else {})),
        tensor(
            "b", [4], 2 if integers else 0, 2, **({"scale": list(scale * SCALE), "zero": [0] * 4} if integers else {})
        ),
        tensor("net/conv/Relu6", [1, half, half, 4], kind, 0, **out),
        tensor("scores", [1, half // 2, half // 2, 4], kind, 0, **out),
    ]
    conv = {"padding": 0, "strideH": 2, "strideW": 2, "fusedActivationFunction": 3}
    conv |= {"dilationHFactor": 1, "dilationWFactor": 1}
    pool = {"padding": 1, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}
    graph.operators = [
        operator(0, [0, 1, 2], [3], "Conv2DOptions", **conv),
        operator(1, [3], [4], "Pool2DOptions", **pool),
    ]
    graph.inputs, graph.outputs = [0], [4]
    model, empty = schema.ModelT(), schema.BufferT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [empty, schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(weight.tobytes(), np.uint8)
    model.buffers[2].data = np.frombuffer(stored_bias.tobytes(), np.uint8)
    model.operatorCodes = []
    for code in codes:
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = code
        made.version = 3 if integers else 1
        model.operatorCodes.append(made)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize("integers", [False, True])
def test_a_file_gives_what_litert_computes_with_channels_first(tmp_path, integers):
    loaded = load_model(written(tmp_path / "m.tflite", integers=integers))
    network = loaded.network
    assert (network.shape, network.outputs[0].shape) == ((3, 8, 8), (4, 2, 2))
    assert any("Checked against LiteRT: outputs differ" in note for note in loaded.notes)
    assert [layer.name for layer in network.layers] == ["net.conv.Relu6"]
    kinds = sorted(q.kind for q in quantizers(network))
    assert kinds == (["activation", "activation", "activation", "weight"] if integers else [])
    operators = [str(n.target) for n in network.graph_module.graph.nodes if n.op == "call_function"]
    assert not any("permute" in name for name in operators)
    assert torch.isfinite(network(torch.randn(1, 3, 8, 8))).all()


def test_what_is_wrong_is_said(tmp_path):
    path = written(tmp_path / "m.tflite", integers=False, codes=(CONV_2D, L2_NORM))
    with pytest.raises(ModelError, match=r"the operator L2_NORMALIZATION \('scores'\)"):
        load_model(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReadError, match="truncated"):
        load_model(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ReadError, match="no TensorFlow Lite file"):
        load_model(path)
