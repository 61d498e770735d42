"""Quantized attention in the runtimes: the same numbers as in torch, and integer products where they are uniform."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from microtome.graph.network import Network
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import runtime
from networks import captured, images, sqnr_db

# A value on the edge between two integers may fall to the other side: one step, a few values in a thousand.
INTEGER_DB = 35.0
# ONNX Runtime names a product of two quantized values by whether its result is quantized too.
PRODUCTS = {"QLinearMatMul", "MatMulIntegerToFloat"}


@functools.cache
def quantized(target: str, softmax: str) -> Network:
    parent = captured("transformer")
    batches = images(parent.shape)
    network = Quantize().run(FoldBatchNorm().run(parent), Context(batches, capabilities=runtime(target).capabilities()))
    return QuantizeAttention(softmax=softmax).run(network, Context(batches))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "reference"])
@pytest.mark.parametrize(
    "softmax", ["uniform", "twin", *(pytest.param(name, marks=pytest.mark.slow) for name in ("log2", "logsqrt2"))]
)
def test_the_runtime_computes_what_the_simulation_does(target: str, softmax: str):
    network, x = quantized(target, softmax), images((3, 16, 16), seed=5)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = runtime(target).export(network, Path(folder))
        session = runtime(target).open_session(path, threads=1, precision="f32")
        assert sqnr_db(network(x), torch.from_numpy(session.run(x.numpy()))) > INTEGER_DB


@pytest.mark.parametrize(("softmax", "products"), [("uniform", 2), ("twin", 1)])
def test_onnx_runtime_multiplies_uniform_factors_in_integers(softmax: str, products: int):
    network, x = quantized("onnxruntime", softmax), images((3, 16, 16))[0]
    target = runtime("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        session = target.open_session(target.export(network, Path(folder)), threads=1, precision="f32")
        runs = session.layer_runs(x.numpy())
    layers = [layer.name for layer in network.layers]
    of_attention = [run for run in runs if run.op in PRODUCTS and not any(run.runs(layer) for layer in layers)]
    assert len(of_attention) == products
