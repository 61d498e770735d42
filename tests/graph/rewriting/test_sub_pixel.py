import pytest
import torch
from torch import nn

from microtome.graph.capture import capture
from microtome.graph.operators import kind
from microtome.graph.rewriting.sub_pixel import sub_pixel
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import images, randomize, told

# Kernel, stride, padding, output padding of transposed convolutions whose output is exactly `stride` times as large.
DOUBLING = [(3, 2, 1, 1), (4, 2, 1, 0), (5, 3, 1, 0), (6, 2, 2, 0)]


def network_with(layer: nn.Module, shape: tuple[int, ...]):
    convolution = nn.Conv2d if len(shape) == 3 else nn.Conv3d
    return capture(randomize(nn.Sequential(convolution(shape[0], 8, 3, padding=1), nn.ReLU(), layer)), shape)


@pytest.mark.parametrize("settings", DOUBLING)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_computes_the_same(settings: tuple[int, ...], bias: bool, dims: int):
    layer = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims](8, 1, *settings, bias=bias)
    network = network_with(layer, (2, *[6] * dims))
    rewritten = sub_pixel(network)
    assert [layer.op for layer in rewritten.layers] == ["conv", "conv"]
    assert [layer.name for layer in rewritten.layers] == [layer.name for layer in network.layers]
    x = torch.randn(3, 2, *range(5, 5 + dims))  # a batch and sizes that it was not captured with
    torch.testing.assert_close(rewritten(x), network(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_computes_the_same_with_quantizers(dims: int):
    layer = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims](8, 1, 3, 2, 1, 1)
    shape = (2, *[6] * dims)
    network = network_with(layer, shape)
    quantized = Quantize().run(FoldBatchNorm().run(network), told(images(shape)))
    rewritten = sub_pixel(quantized)
    assert [layer.op for layer in rewritten.layers] == ["conv", "conv"]
    for x in images(shape, seed=1):
        torch.testing.assert_close(rewritten(x), quantized(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(8, 32, 3, 2, 1, 1),  # fills its lanes: four times the channels would only cost
        nn.ConvTranspose2d(8, 1, 2, 2),  # the kernel does not overlap itself
        nn.ConvTranspose2d(8, 1, 3, 2, 1),  # not twice as large
        nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=8),
        nn.ConvTranspose2d(8, 1, 3, 1, 1),
    ],
)
def test_leaves_alone_what_would_not_gain(layer: nn.Module):
    network = network_with(layer, (2, 6, 6))
    assert sub_pixel(network) is network


def test_does_not_change_its_argument():
    network = network_with(nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), (2, 6, 6))
    before = network.fingerprint()
    sub_pixel(network)
    assert network.fingerprint() == before
    assert "conv_transpose" in {kind(node) for node in network.graph_module.graph.nodes}
