import pytest
import torch
from torch import nn

from microtome.deployment.deploy import sqnr
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.rewriting.small_grid import small_grid
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import images, randomize, told


class End(nn.Module):
    """The end of a U-Net: an upsampling to few channels, and a residual convolution."""

    def __init__(self, dims: int, up: tuple[int, ...] = (3, 2, 1, 1), kernel: int = 3, channels: int = 3) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        transposed = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        self.enter = conv(2, 8, 3, padding=1)
        self.up = transposed(8, channels, *up)
        self.norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(channels)
        self.prelu = nn.PReLU(channels, init=0.3)
        self.conv = conv(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.norm(self.up(torch.relu(self.enter(x)))))
        return x + self.conv(x)


def end(dims: int, *settings: object) -> tuple[Network, tuple[int, ...]]:
    shape = (2, *[6] * dims)
    return capture(randomize(End(dims, *settings)), shape), shape


def quantized(dims: int, *settings: object) -> Network:
    network, shape = end(dims, *settings)
    return Quantize().run(FoldBatchNorm().run(network), told(images(shape)))


def as_near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results differ at most where a sum in another order falls to the other side of a step."""
    return sqnr(other.detach().numpy(), one.detach().numpy()) > 45


def kinds(network: Network) -> list[str]:
    return [kind(node) for node in network.graph_module.graph.nodes if node.op == "call_function"]


UPS = [(3, 2, 1, 1), (2, 2, 0, 0), (4, 2, 1, 0)]


@pytest.mark.parametrize(("dims", "up"), [*((dims, up) for dims in (2, 3) for up in UPS), (2, (5, 3, 1, 0))])
def test_computes_the_same(dims: int, up: tuple[int, ...]):
    network = quantized(dims, up)
    small = small_grid(network)
    assert "conv_transpose" not in kinds(small)
    assert [layer.name for layer in small.layers] == [layer.name for layer in network.layers]
    x = torch.randn(2, 2, *range(5, 5 + dims))  # a batch and sizes that it was not captured with
    assert as_near(small(x), network(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_only_the_output_is_laid_out_in_space(dims: int):
    small = small_grid(quantized(dims))
    moves = [node for node in small.graph_module.graph.nodes if kind(node) in ("pixel_shuffle", "transpose")]
    assert len(moves) == 2  # channels last, then all at once
    assert kind(moves[0].args[0]) == "add"
    positions = {size.name: size.output[2:] for size in layer_sizes(small)}
    assert positions["conv"] == positions["enter"] == (6,) * dims


def test_a_larger_kernel_reads_as_many_blocks_as_it_reaches():
    network = quantized(2, (3, 2, 1, 1), 5)
    small = small_grid(network)
    assert "conv_transpose" not in kinds(small)
    (taps,) = {layer.weight.meta["val"].shape[2] for layer in small.layers if layer.name == "conv"}
    assert taps == 3
    for x in images((2, 6, 6), seed=1):
        assert as_near(small(x), network(x))


class Last(End):
    """Without the residual sum: the last convolution's output alone leaves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(self.prelu(self.norm(self.up(torch.relu(self.enter(x)))))))


@pytest.mark.parametrize(
    ("dims", "up", "taps"), [(2, (3, 2, 1, 1), 2), (3, (3, 2, 1, 1), 2), (2, (5, 3, 1, 0), 2), (2, (4, 4, 0, 0), 2)]
)
def test_the_last_convolution_reads_fewer_blocks(dims: int, up: tuple[int, ...], taps: int):
    shape = (2, *[6] * dims)
    network = capture(randomize(Last(dims, up)), shape)
    network = Quantize().run(FoldBatchNorm().run(network), told(images(shape)))
    small = small_grid(network)
    found = {layer.name: tuple(layer.weight.meta["val"].shape[2:]) for layer in small.layers}
    assert found["conv"] == (taps,) * dims
    x = torch.randn(2, 2, *range(5, 5 + dims))
    assert small(x).shape == network(x).shape
    assert as_near(small(x), network(x))


def test_what_others_read_in_between_is_laid_out_for_them():
    class Both(End):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            large = self.prelu(self.norm(self.up(torch.relu(self.enter(x)))))
            return self.conv(large) * torch.sigmoid(large)

    network = capture(randomize(Both(2)), (2, 6, 6))
    network = Quantize().run(FoldBatchNorm().run(network), told(images((2, 6, 6))))
    small = small_grid(network)
    assert kinds(small).count("pixel_shuffle") == 2
    for x in images((2, 6, 6), seed=1):
        assert as_near(small(x), network(x))


def test_what_would_not_gain_is_left():
    wide = quantized(2, (3, 2, 1, 1), 3, 24)
    assert small_grid(wide) is wide
    layers = (
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 24, 3, 2, 1, 1),
        nn.ReLU(),
        nn.Conv2d(24, 3, 3, padding=1),
    )
    above = capture(randomize(nn.Sequential(*layers)), (2, 6, 6))  # the upsampling itself would cost more
    above = Quantize().run(FoldBatchNorm().run(above), told(images((2, 6, 6))))
    assert small_grid(above) is above
    point = quantized(2, (3, 2, 1, 1), 1)
    assert small_grid(point) is point
    thrice = quantized(3, (5, 3, 1, 0))
    assert small_grid(thrice) is thrice
    in_float, _ = end(3)
    assert small_grid(in_float) is in_float
    behind = capture(randomize(nn.Sequential(nn.Conv2d(2, 8, 3), nn.ConvTranspose2d(8, 2, 3, 2, 1, 1))), (2, 8, 8))
    assert small_grid(behind) is behind  # no convolution: sub_pixel has it


def test_the_argument_is_not_changed():
    network = quantized(2)
    before = network.fingerprint()
    small_grid(network)
    assert network.fingerprint() == before
