import pytest
import torch
from torch import nn

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.methods.fold import FoldBatchNorm
from networks import captured, images, randomize

# Folding is exact in real numbers; in float32 the products round once more: a few units of 2^-24 of the largest output.
ROUNDING = 2e-6


def norms(network: Network) -> int:
    return sum(kind(node) == "batch_norm" for node in network.graph_module.graph.nodes)


def check(network: Network, left: int) -> Network:
    """Fold, expect so many norms to be left, and compare the outputs."""
    folded = FoldBatchNorm().run(network)
    assert norms(folded) == left
    for x in images(network.shape) if len(network.shape) > 1 else [torch.randn((5, *network.shape))]:
        expected = network(x).detach()
        assert float((folded(x).detach() - expected).abs().max()) <= ROUNDING * max(float(expected.abs().max()), 1.0)
    return folded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda bias: nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6), (4, 8, 8)),
        (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6), (4, 8, 8)),
        (lambda bias: nn.Conv2d(4, 4, 3, groups=4, padding="same", bias=bias), nn.BatchNorm2d(4), (4, 8, 8)),
        (lambda bias: nn.Conv3d(2, 4, 3, stride=2, bias=bias), nn.BatchNorm3d(4), (2, 6, 6, 6)),
        (lambda bias: nn.ConvTranspose2d(4, 6, 2, stride=2, bias=bias), nn.BatchNorm2d(6), (4, 8, 8)),
        (lambda bias: nn.ConvTranspose3d(2, 3, 3, stride=2, bias=bias), nn.BatchNorm3d(3), (2, 4, 4, 4)),
        (lambda bias: nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7), (5,)),
        (lambda bias: nn.Conv2d(4, 6, 1, bias=bias), nn.BatchNorm2d(6, affine=False, eps=1e-3), (4, 8, 8)),
    ],
    ids=["conv", "groups", "depthwise", "conv3d", "transpose", "transpose3d", "linear", "no-affine"],
)
def test_a_norm_behind_a_layer_is_folded_exactly(layer, norm, shape: tuple[int, ...], bias: bool):
    folded = check(capture(randomize(nn.Sequential(layer(bias), norm)), shape), left=0)
    assert len(folded.layers) == 1
    assert len(folded.constants()) == 2  # weight and bias


def test_a_grouped_transposed_convolution_keeps_its_norm():
    module = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6))
    check(capture(randomize(module), (4, 8, 8)), left=1)


@pytest.mark.parametrize(("network", "left"), [("unet2d", 0), ("dense2d", 3), ("residual3d", 0)])
def test_whole_networks(network: str, left: int):
    # DenseNet's norms stand before the convolution, behind a concatenation or a pooling: they stay
    check(captured(network), left)


@pytest.mark.parametrize("network", ["shared2d", "tied2d"])
def test_a_weight_that_is_used_twice_is_parted(network: str):
    folded = check(captured(network), left=0)
    one, other = (layer.weight.target for layer in folded.layers[-2:])
    assert one != other


def test_a_norm_behind_a_relu_stays():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1))
    check(capture(randomize(module), (1, 8, 8)), left=1)


def test_a_norm_stays_where_somebody_else_reads_the_layer():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x + self.norm(x)

    check(capture(randomize(Fork()), (1, 8, 8)), left=1)


def test_a_norm_without_running_statistics_stays():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    check(capture(randomize(module), (1, 8, 8)), left=1)


def test_no_data_is_read():
    def unreadable():
        raise AssertionError("folding read a batch")
        yield

    folded = FoldBatchNorm().run(captured("unet2d"))
    assert norms(folded) == 0
