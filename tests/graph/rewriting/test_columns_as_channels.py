import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import aten, kind
from microtome.graph.program import export_graph, exported, network_from_export
from microtome.graph.rewriting.column_operators import TO_CHANNELS, TO_COLUMNS
from microtome.graph.rewriting.columns_as_channels import columns_as_channels
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import Port
from networks import images, randomize, told


class Narrow(nn.Module):
    """A residual block of 8 channels with a norm behind an activation, a pooling, a concatenation on the way up."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        conv, norm, up = {
            2: (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d),
            3: (nn.Conv3d, nn.BatchNorm3d, nn.ConvTranspose3d),
        }[dims]
        self.pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[dims]
        self.first, self.norm = conv(3, 8, 3, padding=1), norm(8)
        self.second, self.shortcut = conv(8, 8, 3, padding=1), conv(3, 8, 1)
        self.slope = nn.PReLU(8)
        self.deep, self.up = conv(8, 16, 3, padding=1), up(16, 8, 2, stride=2)
        self.last, self.skip, self.leave = conv(16, 4, 3, padding=1), conv(16, 4, 1), conv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.slope(self.second(self.norm(functional.relu(self.first(x))))) + self.shortcut(x)
        b = torch.cat([self.up(functional.relu(self.deep(self.pool(a, 2)))), a], 1)
        return self.leave(functional.relu(self.last(b)) + self.skip(b))


def quantized(module: nn.Module, shape: tuple[int, ...]) -> Network:
    return Quantize().run(FoldBatchNorm().run(capture(randomize(module), shape)), told(images(shape)))


def fixed_size(module: nn.Module, size: int) -> Network:
    port = Port("input", (3, size, size), (True, False, False, False))
    captured = network_from_export(export_graph(randomize(module), [port]))
    return Quantize().run(FoldBatchNorm().run(captured), told(images((3, size, size))))


def between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), layer, nn.Conv2d(layer.out_channels, 2, 1))


def layers(network: Network) -> dict[str, tuple[int, ...]]:
    return {layer.name: tuple(network.tensor(str(layer.weight.target)).shape) for layer in network.layers}


@pytest.mark.parametrize("dims", [2, 3])
def test_computes_the_same(dims: int):
    torch.manual_seed(0)  # a value on the border between two integers may go either way
    shape = (3, *[8] * dims)
    network = quantized(Narrow(dims), shape)
    rewritten = columns_as_channels(network)
    small = (3,) * (dims - 1)
    assert layers(rewritten)["first"] == (16, 3, *small, 4)
    assert layers(rewritten)["shortcut"] == (16, 3, *[1] * (dims - 1), 2)  # for the sake of the sum
    assert layers(rewritten)["deep"] == (16, 8, *small, 3)
    assert layers(rewritten)["up"] == (16, 16, *[2] * (dims - 1), 1)
    assert layers(rewritten)["last"] == (8, 8, *small, 4)  # not four columns: a width of 10 is allowed, too
    assert layers(rewritten)["last.part2"] == (8, 8, *small, 4)
    assert "concat" not in {kind(node) for node in rewritten.graph_module.graph.nodes}
    for size in (8, 10, 16):  # also one that it was not captured with
        x = torch.randn(2, 3, *[8] * (dims - 1), size)
        torch.testing.assert_close(rewritten(x), network(x), atol=2e-5, rtol=2e-5)


def test_exports_with_free_sizes():
    network = quantized(Narrow(), (3, 8, 8))
    program = exported(columns_as_channels(network))
    x = torch.randn(2, 3, 12, 16)
    torch.testing.assert_close(program.module()(x), network(x), atol=2e-5, rtol=2e-5)


def test_what_goes_to_a_quantizer_stays_behind_its_layer():
    """So that runtimes fuse it: there is nothing between a folded layer and what follows it."""
    rewritten = columns_as_channels(quantized(Narrow(), (3, 8, 8)))
    for node in rewritten.graph_module.graph.nodes:
        if node.target is TO_COLUMNS:
            assert kind(node.args[0]) == "quantizer"
        assert node.target is not TO_CHANNELS


def test_a_value_from_elsewhere_is_added_side_by_side():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.narrow, self.leave = (
                nn.Conv2d(3, 16, 1),
                nn.Conv2d(16, 8, 3, padding=1),
                nn.Conv2d(8, 2, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            a = self.enter(x)
            return self.leave(self.narrow(a) + functional.avg_pool2d(a[:, :8], 3, 1, 1))

    network = fixed_size(Net(), 8)
    rewritten = columns_as_channels(network)
    assert TO_CHANNELS in {node.target for node in rewritten.graph_module.graph.nodes}
    x = images((3, 8, 8), seed=1)[0]
    torch.testing.assert_close(rewritten(x), network(x), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("layer", "folded"),
    [
        (nn.Conv2d(16, 8, 3, padding=1), True),
        (nn.Conv2d(16, 16, 3, padding=1), False),  # fills its registers
        (nn.Conv2d(16, 8, 1), False),  # nothing overlaps
        (nn.Conv2d(16, 8, 3, padding=1, stride=2), False),
        (nn.Conv2d(16, 8, 3), False),
        (nn.Conv2d(16, 8, 3, padding=2, dilation=2), False),
        (nn.Conv2d(16, 8, 3, padding=1, groups=2), False),
        (nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), False),
    ],
)
def test_folds_what_gains(layer: nn.Module, folded: bool):
    network = fixed_size(between(layer), 8)
    assert (columns_as_channels(network) is not network) == folded


def test_odd_widths_stay_possible():
    module = between(nn.Conv2d(16, 8, 3, padding=1))
    for network in (quantized(module, (3, 8, 8)), fixed_size(module, 9)):
        assert columns_as_channels(network) is network


def test_float_layers_are_left_alone():
    network = capture(randomize(Narrow()), (3, 8, 8))
    assert columns_as_channels(network) is network


def test_does_not_change_its_argument():
    network = quantized(Narrow(), (3, 8, 8))
    before = network.fingerprint()
    columns_as_channels(network)
    assert network.fingerprint() == before
    assert aten.cat.default in {node.target for node in network.graph_module.graph.nodes}
