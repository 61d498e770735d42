import pytest
import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize
from microtome.errors import DataError
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.quantizers import input_quantizer
from microtome.graph.watching.observe import Unquantized, watch
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, captured, images


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
    network = FoldBatchNorm()(captured("shared2d"), [])
    return Quantize(EVERYTHING, weight_bits=2, activation_bits=2)(network, images(network.shape))


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
