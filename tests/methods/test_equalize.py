import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.graph.scaling import input_ranges, output_ranges, pairs
from microtome.methods.equalize import Equalize
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, NETWORKS, captured, images, randomize, sqnr_db

NAMES = [name for name in NETWORKS if name != "nothing"]


class Skip(nn.Module):
    """A value that a layer reads at once and another one through a concatenation and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.deep = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(5, 4, 2, stride=2), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = functional.leaky_relu(self.enter(x))
        up = functional.relu(self.up(functional.relu(self.deep(functional.max_pool2d(skip, 2)))))
        return self.head(torch.cat([up, skip], 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_network_computes_the_same(name: str):
    network = FoldBatchNorm()(captured(name), [])
    x = images(network.shape)[0]
    torch.testing.assert_close(Equalize()(network, [])(x), network(x), rtol=1e-4, atol=1e-4)


def test_channels_are_as_wide_where_they_are_made_as_where_they_are_read():
    network = FoldBatchNorm()(capture(randomize(Skip()), (1, 16, 16)), [])
    for layer, channel in (("enter", 2), ("deep", 0), ("up", 3)):
        node = next(found for found in network.layers if found.name == layer)
        weight = network.tensor(str(node.weight.target))
        (weight if layer != "up" else weight.transpose(0, 1))[channel] *= 50
    assert len(pairs(network)) == 3
    even = Equalize(rounds=60, tolerance=1e-4)(network, [])
    for pair in pairs(even):
        torch.testing.assert_close(output_ranges(even, pair), input_ranges(even, pair), rtol=1e-2, atol=1e-6)
    x = images((1, 16, 16))[0]
    torch.testing.assert_close(even(x), network(x), rtol=1e-4, atol=1e-3)


def test_uneven_channels_survive_narrow_grids_better():
    network = FoldBatchNorm()(capture(randomize(Skip()), (1, 16, 16)), [])
    deep = next(found for found in network.layers if found.name == "deep")
    head = next(found for found in network.layers if found.name == "up")
    factors = torch.logspace(-1.5, 1.5, 5)
    network.tensor(str(deep.weight.target)).mul_(factors.reshape(-1, 1, 1, 1))
    network.tensor(str(head.weight.target)).div_(factors.reshape(-1, 1, 1, 1))
    x, quantize = images((1, 16, 16))[0], Quantize(EVERYTHING, activation_bits=4)
    plain = quantize(network, images((1, 16, 16)))
    even = quantize(Equalize()(network, []), images((1, 16, 16)))
    assert sqnr_db(network(x), even(x)) > sqnr_db(network(x), plain(x)) + 2


def test_what_does_not_commute_is_left_alone():
    assert pairs(FoldBatchNorm()(captured("residual3d"), [])) == ()  # norms, and a sum
    assert pairs(captured("shared2d")) == ()


def test_no_rounds_are_refused():
    with pytest.raises(OptionError, match="at least one round"):
        Equalize(rounds=0)(captured("unet2d"), [])
