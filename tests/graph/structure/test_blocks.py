import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.graph.capture import capture
from microtome.graph.learning.learned_grids import LearnedGrid
from microtome.graph.learning.trainable import Trainable
from microtome.graph.network import Network
from microtome.graph.structure.blocks import Block, blocks, join, join_unequal, run_block
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import NETWORKS, captured, images, randomize, told


def quantized(name: str) -> Network:
    network = FoldBatchNorm().run(captured(name))
    return Quantize().run(network, told(images(network.shape))) if name != "nothing" else network


class WritesIntoSkip(nn.Module):
    """An activation function that writes, through a view, into a value which a skip connection reads later."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(channels, 3, 3, padding=1) for channels in (3, 2, 3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x)
        inner = self.convs[2](self.convs[1](functional.relu_(x[:, :2])))
        return self.convs[3](x + inner)


class WritesIntoConstant(nn.Module):
    """A mask that is filled in through a view, and read by two layers, as in shifted windows."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(8, 8)
        mask[:4, 2:] = 5.0
        x = self.convs[1](self.convs[0](x) * mask)
        return self.convs[2](x + mask)


WRITING = {"skip": WritesIntoSkip, "constant": WritesIntoConstant}


def copied(value):
    """Return what a file would hold: nothing in common with the value's memory."""
    return value.clone() if isinstance(value, Tensor) else value


def chained(module, cut, x):
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    alive = {start: x}
    for block in cut:
        made = run_block(module, block, {node: copied(alive[node]) for node in block.inputs})
        alive |= {node: copied(value) for node, value in made.items()}
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


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("name", WRITING)
def test_values_that_are_written_into_stay_what_they_are(name: str, layers: int):
    network = capture(randomize(WRITING[name]()), (3, 8, 8))
    assert any(str(node.target).split(".")[1].endswith("_") for node in network.graph_module.graph.nodes if node.args)
    x = images(network.shape)[0]
    cut = blocks(network.graph_module, layers=layers)
    assert torch.equal(chained(network.graph_module, cut, x.clone()), network(x.clone()))


@pytest.mark.parametrize("name", ["unet2d", "residual3d", "dense2d", "transformer"])
def test_neighbours_that_are_joined_compute_the_same(name: str):
    network = quantized(name)
    x = images(network.shape)[0]
    cut = blocks(network.graph_module, layers=1)
    for first in range(len(cut) - 1):
        joined = (*cut[:first], join(cut[first], cut[first + 1]), *cut[first + 2 :])
        assert sum(block.layers for block in joined) == len(network.layers)
        assert torch.equal(chained(network.graph_module, joined, x), network(x))


def test_what_two_joined_blocks_alone_share_is_no_output():
    cut = blocks(quantized("residual3d").graph_module, layers=1)
    both = join(cut[0], cut[1])
    assert set(cut[0].outputs) - set(both.outputs) or set(both.outputs) <= {*cut[0].outputs, *cut[1].outputs}
    assert all(any(user not in both.nodes for user in node.users) for node in both.outputs)


@pytest.mark.parametrize(
    ("pairs", "expected"), [(0, [1, 1, 1, 1, 1]), (1, [1, 2, 1, 1]), (2, [1, 2, 2]), (9, [1, 2, 2])]
)
def test_the_most_unequal_neighbours_are_joined(pairs: int, expected: list[int]):
    cut = [Block((), (), (), 1)] * 5  # differences of 1, 90, 3, 7: the pairs (1, 2) and (3, 4)
    joined = join_unequal(cut, [9, 10, 100, 97, 90], pairs)
    assert [block.layers for block in joined] == expected


def test_no_block_is_in_two_pairs():
    cut = [Block((), (), (), 1)] * 6
    for capacities in itertools.permutations([1, 2, 4, 8, 16, 32]):
        assert max(block.layers for block in join_unequal(cut, capacities, 5)) == 2
