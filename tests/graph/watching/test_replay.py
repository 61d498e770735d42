import pytest
import torch
from torch import Tensor, nn

from microtome.graph.capture import capture
from microtome.graph.watching.replay import Replay, without_mutation
from networks import NETWORKS, captured, images

WITH_LAYERS = [name for name in NETWORKS if name != "nothing"]


class InPlace(nn.Module):
    """Reads a value before and after it was overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        before = y * 2
        torch.nn.functional.relu_(y)
        z = self.other(y)
        z.add_(y)
        return before + torch.nn.functional.leaky_relu(z, 0.1, inplace=True)


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_the_rest_with_the_value_itself_is_the_network(name: str):
    network = without_mutation(captured(name))
    x = images(network.shape)[0]
    replay = Replay(network, [layer.node for layer in network.layers])
    with torch.no_grad():
        expected = captured(name)(x)
        stops = 0
        for node, arguments, resume in replay(x):
            value = node.target(*arguments, **node.kwargs)
            assert torch.equal(resume(value), expected)
            assert not torch.equal(resume(value + 1 + value.abs()), expected) or name == "residual3d"
            assert torch.equal(resume(value), expected)
            stops += 1
    assert stops == len(network.layers)


def test_operators_that_overwrite_are_replaced():
    network = capture(InPlace(), (3, 6, 6))
    mutable = [n for n in network.graph_module.graph.nodes if n.op == "call_function" and n.target._schema.is_mutable]
    assert len(mutable) == 3
    pure = without_mutation(network)
    assert not [n for n in pure.graph_module.graph.nodes if n.op == "call_function" and n.target._schema.is_mutable]
    x = images((3, 6, 6))[0]
    assert torch.equal(pure(x), network(x))
    assert [layer.name for layer in pure.layers] == [layer.name for layer in network.layers]


def test_replays_of_a_network_that_overwrote_do_not_touch_one_another():
    network = without_mutation(capture(InPlace(), (3, 6, 6)))
    x = images((3, 6, 6))[0]
    with torch.no_grad():
        for node, arguments, resume in Replay(network, [layer.node for layer in network.layers])(x):
            value = node.target(*arguments)
            resume(value + 1)
            assert torch.equal(resume(value), network(x))
