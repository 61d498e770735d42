import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from microtome.core.affine import fake_quantize
from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.quantizers import input_quantizer
from microtome.graph.watching.eager import depends_on_layout
from microtome.graph.watching.observe import Observed, Unquantized, watch
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, told

SUMS = 1e-5  # the same products in another order, of size 1


class Seen:
    """A watcher that keeps everything, and refuses what is not finite."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def update(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise ValueError("not finite")
        self.values.append(values.clone())


def first(network: Network, operator: str) -> Node:
    return next(node for node in network.graph_module.graph.nodes if kind(node) == operator)


def quantized() -> Network:
    network = FoldBatchNorm().run(captured("shared2d"))
    return Quantize(weight_bits=2, activation_bits=2).run(network, told(images(network.shape)))


def test_each_watcher_sees_its_node_in_every_batch():
    network, batches = captured("shared2d"), images((1, 8, 8))
    conv, last = network.layers[0].node, network.graph_module.graph.output_node().args[0]
    watchers = {conv: Seen(), last: Seen()}
    watch(network, watchers, batches)
    weight, bias = network.tensor("enter.weight"), network.tensor("enter.bias")
    assert len(watchers[conv].values) == len(watchers[last].values) == len(batches)
    for k, x in enumerate(batches):
        assert torch.equal(watchers[conv].values[k], torch.conv2d(x, weight, bias))
        assert torch.equal(watchers[last].values[k], network(x))


def test_a_value_that_is_not_finite_is_named():
    network = captured("shared2d")
    broken = [*images(network.shape), torch.full((1, 1, 8, 8), float("nan"))]
    node = first(network, "relu")
    with pytest.raises(DataError, match=f"^a calibration image makes {node.name} NaN or infinite"):
        watch(network, {node: Seen()}, broken)


def test_nothing_to_watch_is_an_error():
    network = captured("shared2d")
    with pytest.raises(DataError, match="there are no calibration images"):
        watch(network, {network.layers[0].node: Seen()}, [])


@pytest.mark.parametrize("weights_only", [False, True])
def test_quantizers_are_left_out_all_or_those_of_weights(weights_only: bool):
    network = quantized()
    layer = network.layers[0]
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    run = Unquantized(network, [layer.node], lambda _, a, v: seen.append((a[0], a[1], v)), weights_only=weights_only)
    x = images(network.shape)[0]
    run(x)
    weight = network.tensor(str(layer.weight.target))
    grid = input_quantizer(network, layer)
    rounded = fake_quantize(x, grid)
    assert not torch.equal(rounded, x)
    expected = rounded if weights_only else x
    assert len(seen) == 1
    assert torch.equal(seen[0][0], expected)
    assert torch.equal(seen[0][1], weight)
    assert torch.equal(seen[0][2], torch.conv2d(expected, weight, network.tensor(str(layer.node.args[2].target))))


class Shaped(nn.Module):
    """Operators that run in other forms while they are watched: layouts, norms, and reshapes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1))
        self.solid = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Conv3d(4, 16, 1))
        self.wide = nn.Sequential(nn.GroupNorm(4, 16), nn.ConvTranspose3d(16, 32, 2, 2), nn.InstanceNorm3d(32))
        self.leave = nn.Sequential(nn.Conv3d(32, 16, 1), nn.GroupNorm(1, 16, affine=False), nn.Conv3d(16, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.flat(x))
        return self.leave(self.wide(self.solid(y.view(y.shape[0], 2, 2, *y.shape[2:]))))


@pytest.mark.parametrize("batch", [1, 2])
def test_watched_values_are_those_of_the_network(batch: int):
    network = capture(Shaped(), (3, 8, 8))
    assert not depends_on_layout(network.graph_module.graph)
    output, seen = network.graph_module.graph.output_node().args[0], Seen()
    x = torch.cat(images(network.shape))[:batch]
    watch(network, {output: seen}, [x])
    with torch.no_grad():
        assert torch.allclose(seen.values[0], network(x), rtol=0, atol=SUMS)


def test_what_comes_after_the_last_watched_node_does_not_run():
    network = captured("shared2d")
    names = [node.name for node in network.graph_module.graph.nodes if node.op == "call_function"]
    ran: list[str] = []

    class Told(Observed):
        def call_function(self, target: object, *rest: object) -> object:
            ran.append(str(target))
            return super().call_function(target, *rest)

    middle = network.layers[1].node
    Told(network, [network.layers[0].node, middle], lambda node, value: None)(images(network.shape)[0])
    assert len(ran) == names.index(middle.name) + 1 < len(names)


class WritesThroughView(nn.Module):
    """A value that is changed through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.view(y.shape[0], -1).add_(1.0)
        return torch.neg(y)


def test_what_is_written_through_a_view_arrives():
    network = capture(WritesThroughView(), (3, 8, 8))
    assert depends_on_layout(network.graph_module.graph)
    output, seen = network.graph_module.graph.output_node().args[0], Seen()
    x = images(network.shape)[0]
    watch(network, {output: seen}, [x])
    with torch.no_grad():
        assert torch.equal(seen.values[0], network(x))
