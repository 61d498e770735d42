import pytest
import torch

from microtome.graph.blocks import blocks, run_block
from microtome.graph.learned import LearnedGrid
from microtome.graph.network import Network
from microtome.graph.trainable import Trainable
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, NETWORKS, captured, images


def quantized(name: str) -> Network:
    network = FoldBatchNorm()(captured(name), [])
    return Quantize(EVERYTHING)(network, images(network.shape)) if name != "nothing" else network


def chained(module, cut, x):
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    alive = {start: x}
    for block in cut:
        alive |= run_block(module, block, {node: alive[node] for node in block.inputs})
    return alive[cut[-1].outputs[0]]


@pytest.mark.parametrize("layers", [1, 2, 4, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_one_after_the_other_are_the_network(name: str, layers: int):
    network = quantized(name)
    x = images(network.shape)[0]
    cut = blocks(network.graph_module, layers=layers)
    assert torch.equal(chained(network.graph_module, cut, x), network(x))


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "nothing"])
def test_every_layer_is_in_one_block_and_no_block_has_too_many(name: str, layers: int):
    network = quantized(name)
    cut = blocks(network.graph_module, layers=layers)
    assert sum(block.layers for block in cut) == len(network.layers)
    assert all(1 <= block.layers <= layers for block in cut)
    inside = [node for block in cut for node in block.nodes]
    assert len(inside) == len(set(inside))


@pytest.mark.parametrize("name", ["unet2d", "residual3d", "transformer"])
def test_quantizers_that_are_modules_count_alike(name: str):
    network = quantized(name)
    student = Trainable(
        network, weight=lambda q: LearnedGrid(q.qparams), activation=lambda q: LearnedGrid(q.qparams)
    ).module
    x = images(network.shape)[0]
    cut, plain = blocks(student, layers=2), blocks(network.graph_module, layers=2)
    assert [block.layers for block in cut] == [block.layers for block in plain]
    torch.testing.assert_close(chained(student, cut, x), student(x))


def test_a_skip_connection_is_an_input_of_the_block_that_reads_it():
    network = quantized("unet2d")
    cut = blocks(network.graph_module, layers=1)
    assert max(len(block.inputs) for block in cut) >= 2


def test_a_residual_block_ends_where_one_value_is_left():
    network = quantized("residual3d")
    cut = blocks(network.graph_module, layers=3)
    assert [block.layers for block in cut] == [3, 1]
    assert len(cut[0].outputs) == 1


def test_gradients_flow_through_a_block():
    network = quantized("unet2d")
    block = blocks(network.graph_module, layers=2)[1]
    x = images(network.shape)[0]
    alive = {next(n for n in network.graph_module.graph.nodes if n.op == "placeholder"): x}
    first = blocks(network.graph_module, layers=2)[0]
    alive |= run_block(network.graph_module, first, alive)
    inputs = {node: alive[node].detach().requires_grad_() for node in block.inputs}
    sum(value.sum() for value in run_block(network.graph_module, block, inputs).values()).backward()
    assert all(value.grad is not None for value in inputs.values())
