import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.graph.structure.scaling import input_ranges, output_ranges, pairs
from microtome.methods.equalize import Equalize
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import NETWORKS, captured, images, randomize, sqnr_db, told

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


class Grouped(nn.Module):
    """Depthwise and grouped layers, an upsampling, padding, a permutation, and a flattening into features."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.depth = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6)
        self.point, self.up = nn.Conv2d(6, 4, 1, groups=2), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.wide, self.tokens = nn.Conv2d(6, 5, 3), nn.Linear(5, 7)
        self.last, self.head = nn.Conv2d(7, 3, 4, stride=4), nn.Linear(3 * 4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(functional.pad(functional.relu(self.enter(x)), (1, 1, 1, 1)))
        x = functional.interpolate(functional.relu(self.point(functional.relu(x))), scale_factor=2)
        x = functional.relu(self.wide(functional.pad(functional.relu(self.up(x)), (1, 1, 1, 1), mode="replicate")))
        x = functional.relu(self.tokens(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = functional.adaptive_avg_pool2d(functional.relu(self.last(x)), 4)
        return self.head(torch.flatten(x, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_network_computes_the_same(name: str):
    network = FoldBatchNorm().run(captured(name))
    x = images(network.shape)[0]
    torch.testing.assert_close(Equalize().run(network)(x), network(x), rtol=1e-4, atol=1e-4)


def test_channels_are_as_wide_where_they_are_made_as_where_they_are_read():
    network = FoldBatchNorm().run(capture(randomize(Skip()), (1, 16, 16)))
    for layer, channel in (("enter", 2), ("deep", 0), ("up", 3)):
        node = next(found for found in network.layers if found.name == layer)
        weight = network.tensor(str(node.weight.target))
        (weight if layer != "up" else weight.transpose(0, 1))[channel] *= 50
    assert len(pairs(network)) == 3
    even = Equalize(rounds=60, tolerance=1e-4).run(network)
    for pair in pairs(even):
        torch.testing.assert_close(output_ranges(even, pair), input_ranges(even, pair), rtol=1e-2, atol=1e-6)
    x = images((1, 16, 16))[0]
    torch.testing.assert_close(even(x), network(x), rtol=1e-4, atol=1e-3)


def test_groups_views_and_features_are_followed():
    network = FoldBatchNorm().run(capture(randomize(Grouped()), (2, 8, 8)))
    names = {layer.node: layer.name for layer in network.layers}
    chain = {names[pair.node]: [names[reader.node] for reader in pair.readers] for pair in pairs(network)}
    order = ["enter", "depth", "point", "up", "wide", "tokens", "last", "head"]
    assert chain == {one: [other] for one, other in itertools.pairwise(order)}
    for position, name in enumerate(order[:-1]):
        weight = network.tensor(f"{name}.weight")
        (weight if name != "up" else weight[:2].movedim(1, 0))[position % 3] *= 20
    even = Equalize(rounds=200, tolerance=1e-4).run(network)
    for pair in pairs(even):
        torch.testing.assert_close(output_ranges(even, pair), input_ranges(even, pair), rtol=1e-2, atol=1e-6)
    x = images((2, 8, 8))[0]
    torch.testing.assert_close(even(x), network(x), rtol=1e-4, atol=1e-4)


def test_the_scale_is_that_of_the_paper():
    network = capture(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), (2,))
    weights = (torch.tensor([[8.0, -1.0], [0.5, 0.25]]), torch.tensor([[2.0, -4.5]]))
    for name, value in zip(("0.weight", "2.weight"), weights, strict=True):
        network.tensor(name).copy_(value)
    even = Equalize(rounds=1).run(network)
    # s = sqrt(range of output / range of input) = 8/2 and 0.5/4.5, under the root
    torch.testing.assert_close(even.tensor("0.weight"), torch.tensor([[4.0, -0.5], [1.5, 0.75]]))
    torch.testing.assert_close(even.tensor("2.weight"), torch.tensor([[4.0, -1.5]]))


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.SiLU(), nn.GroupNorm(2, 4), nn.ConstantPad2d(1, 0.5)])
def test_scales_do_not_pass_these(between: nn.Module):
    layers = nn.Sequential(nn.Conv2d(2, 4, 1), between, nn.Conv2d(4, 2, 1))
    assert pairs(capture(randomize(layers), (2, 8, 8))) == ()


def test_uneven_channels_survive_narrow_grids_better():
    network = FoldBatchNorm().run(capture(randomize(Skip()), (1, 16, 16)))
    deep = next(found for found in network.layers if found.name == "deep")
    head = next(found for found in network.layers if found.name == "up")
    factors = torch.logspace(-1.5, 1.5, 5)
    network.tensor(str(deep.weight.target)).mul_(factors.reshape(-1, 1, 1, 1))
    network.tensor(str(head.weight.target)).div_(factors.reshape(-1, 1, 1, 1))
    x, quantize = images((1, 16, 16))[0], Quantize(activation_bits=4)
    plain = quantize.run(network, told(images((1, 16, 16))))
    even = quantize.run(Equalize().run(network), told(images((1, 16, 16))))
    assert sqnr_db(network(x), even(x)) > sqnr_db(network(x), plain(x)) + 2


def test_what_does_not_commute_is_left_alone():
    assert pairs(FoldBatchNorm().run(captured("residual3d"))) == ()  # norms, and a sum
    assert pairs(captured("shared2d")) == ()


def test_no_rounds_are_refused():
    with pytest.raises(OptionError, match="at least one round"):
        Equalize(rounds=0).run(captured("unet2d"))
