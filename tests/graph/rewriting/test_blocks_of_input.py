import pytest
import torch
from torch import nn

from microtome.deployment.deploy import sqnr
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.program import export_graph, network_from_export
from microtome.graph.rewriting.blocks_of_input import blocks_of_input
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import openvino
from microtome.types import Port
from networks import images, randomize, told

# Kernel, stride and padding of convolutions that give one pixel per block.
STEMS = [(3, 2, 1), (7, 2, 3), (2, 2, 0), (4, 2, 1), (5, 3, 1), (4, 4, 0)]


class UNet(nn.Module):
    """Two strided layers over the image, and a way back that fits whole blocks only."""

    def __init__(self, dims: int, stem: tuple[int, int, int], channels: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        transposed = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        kernel, stride, padding = stem
        self.one, self.other = conv(channels, 6, kernel, stride, padding), conv(channels, 6, kernel, stride, padding)
        self.up, self.leave = transposed(6, 3, stride, stride), conv(3 + channels, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = self.up(torch.relu(self.one(x)) + self.other(x))
        return self.leave(torch.cat([large, x], 1))


def fixed(module: nn.Module, shape: tuple[int, ...]) -> Network:
    port = Port("input", shape, (True, *[False] * len(shape)))
    return network_from_export(export_graph(randomize(module).eval(), [port]))


def quantized(network: Network) -> Network:
    return Quantize().run(FoldBatchNorm().run(network), told(images(network.shape)))


def as_near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results differ at most where a sum in another order falls to the other side of a step."""
    return sqnr(other.detach().numpy(), one.detach().numpy()) > 45


def sizes(network: Network) -> dict[str, tuple[int, ...]]:
    return {size.name: size.weight for size in layer_sizes(network)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stem", STEMS)
def test_computes_the_same(dims: int, stem: tuple[int, int, int]):
    network = quantized(fixed(UNet(dims, stem), (2, *[12] * dims)))
    rewritten = blocks_of_input(network)
    assert [layer.name for layer in rewritten.layers] == [layer.name for layer in network.layers]
    assert sizes(rewritten)["one"][1] == sizes(rewritten)["other"][1] == 2 * stem[1] ** dims
    x = torch.randn(2, 2, *[12] * dims)
    assert as_near(rewritten(x), network(x))


def test_layers_over_one_image_read_the_same_blocks():
    rewritten = blocks_of_input(quantized(fixed(UNet(3, (3, 2, 1)), (2, 12, 12, 12))))
    one, other = (layer.node.args[0] for layer in rewritten.layers if layer.name in ("one", "other"))
    assert one is other
    assert [kind(node) for node in rewritten.graph_module.graph.nodes].count("blocks_to_channels") == 1


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_last_block_need_not_be_full(kernel: int, dims: int):
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    module = nn.Sequential(conv(2, 6, kernel, 2, kernel // 2), nn.ReLU(), conv(6, 2, 1))
    network = quantized(capture(randomize(module), (2, *[12] * dims)))
    assert all(network.dynamic[2:])
    rewritten = blocks_of_input(network)
    assert rewritten is not network
    for sizes in ((9, 12, 7), (8, 8, 8)):
        x = torch.randn(3, 2, *sizes[:dims])
        assert as_near(rewritten(x), network(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_runtimes_compute_the_same_on_images_of_any_size(dims: int, tmp_path):
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    network = quantized(capture(randomize(nn.Sequential(conv(2, 6, 3, 2, 1), conv(6, 2, 1))), (2, *[12] * dims)))
    session = openvino.open_session(openvino.export(network, tmp_path), threads=1)
    for sizes in ((9, 12, 7), (8, 8, 8)):
        x = torch.randn(1, 2, *sizes[:dims])
        assert sqnr(network(x).detach().numpy(), session.run(x.numpy())) > 35


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(2, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 2, 1)),  # takes 11 pixels as well, for 5
        UNet(2, (3, 2, 1), channels=8),  # channels enough
        nn.Sequential(nn.Conv2d(2, 6, 3, 1, 1), nn.Conv2d(6, 2, 3, 2, 1)),  # not the first
        nn.Sequential(nn.Conv2d(2, 6, (3, 5), 2, (1, 2))),
        nn.Sequential(nn.Conv2d(2, 6, 3, 2, 2)),
    ],
)
def test_others_are_left(module: nn.Module):
    channels = next(module.parameters()).shape[1]
    network = quantized(capture(randomize(module), (channels, 12, 12)))
    assert blocks_of_input(network) is network


def test_a_network_in_float_is_left():
    network = fixed(UNet(2, (3, 2, 1)), (2, 12, 12))
    assert blocks_of_input(network) is network


def test_an_image_of_another_size_is_left():
    network = quantized(fixed(nn.Sequential(nn.Conv2d(2, 6, 4, 2, 1)), (2, 13, 12)))
    assert blocks_of_input(network) is network


def test_the_argument_is_not_changed():
    network = quantized(fixed(UNet(2, (3, 2, 1)), (2, 12, 12)))
    before = network.fingerprint()
    blocks_of_input(network)
    assert network.fingerprint() == before
