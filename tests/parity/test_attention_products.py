"""Quantized attention in the runtimes: the same numbers as in torch, and integer products where they are uniform."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.structure.attention import expand_attention, products
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.recipes import read, run
from microtome.runtimes import runtime
from microtome.runtimes.base import LayerRun
from networks import captured, images, randomize, sqnr_db

pytestmark = pytest.mark.slow

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


@functools.cache
def vit() -> Network:
    """Return MONAI's ViT: its attention is written with einsum."""
    monai = pytest.importorskip("monai.networks.nets")
    sizes = {"img_size": (16, 16), "patch_size": (4, 4), "hidden_size": 16, "mlp_dim": 32, "num_layers": 2}
    torch.manual_seed(0)
    return capture(randomize(monai.ViT(1, num_heads=2, spatial_dims=2, classification=True, **sizes)), (1, 16, 16))


NETWORKS = {"transformer": lambda: captured("transformer"), "vit": vit}


@functools.cache
def by_recipe(target: str, name: str) -> Network:
    parent = NETWORKS[name]()
    context = Context(images(parent.shape), capabilities=runtime(target).capabilities())
    return run(read("transformer"), parent, context)


def runs_on_onnx_runtime(network: Network) -> tuple[LayerRun, ...]:
    target = runtime("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        session = target.open_session(target.export(network, Path(folder)), threads=1, precision="f32")
        return session.layer_runs(images(network.shape)[0].numpy())


def integer_products(network: Network) -> int:
    """Count the integer matrix products that ONNX Runtime runs, but for those of layers."""
    layers = [layer.name for layer in network.layers]
    found = [run for run in runs_on_onnx_runtime(network) if run.op in PRODUCTS]
    return sum(not any(run.runs(layer) for layer in layers) for run in found)


@pytest.mark.parametrize(("softmax", "expected"), [("uniform", 2), ("twin", 1)])
def test_onnx_runtime_multiplies_uniform_factors_in_integers(softmax: str, expected: int):
    assert integer_products(quantized("onnxruntime", softmax)) == expected


@pytest.mark.parametrize(("name", "expected"), [("transformer", 2), ("vit", 4)])
def test_every_product_that_the_recipe_asks_for_runs_in_integers(name: str, expected: int):
    network = by_recipe("onnxruntime", name)
    assert quantized_products(network) == integer_products(network) == expected


@pytest.mark.parametrize(("target", "expected"), [("onnxruntime", 2), ("openvino", 0), ("reference", 2)])
def test_the_recipe_asks_for_products_where_the_target_runs_them(target: str, expected: int):
    assert quantized_products(by_recipe(target, "transformer")) == expected


def quantized_products(network: Network) -> int:
    found = products(expand_attention(network))
    return sum(all(kind(factor) == "quantizer" for factor in product.node.args[:2]) for product in found)


def test_onnx_runtime_gets_attention_as_plain_products():
    assert not {run.op for run in runs_on_onnx_runtime(vit())} & {"Einsum"}
    assert sum(run.op in ("MatMul", "FusedMatMul") for run in runs_on_onnx_runtime(vit())) >= 4


def test_a_linear_layer_on_tokens_needs_no_integer_output():
    network = by_recipe("onnxruntime", "transformer")
    behind = {layer.name: {kind(user) for user in layer.node.users} for layer in network.layers}
    assert "quantizer" not in behind["mlp.0"] | behind["mlp.2"] | behind["project"]
    assert behind["head"] == {"quantizer"}  # on a matrix: Gemm
