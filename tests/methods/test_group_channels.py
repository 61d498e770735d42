import pytest
import torch
from torch import Tensor, nn

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import groups, kind
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.base import Context
from microtome.methods.group_channels import GroupChannels
from networks import captured, images, randomize, sqnr_db

# Sums over channels in float32, in another order.
ROUNDING = 1e-5


def blocked(layer: nn.Conv2d, seed: int) -> nn.Conv2d:
    """Leave of a layer two groups of shuffled outputs and inputs."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = (torch.randperm(n, generator=generator) % 2 for n in layer.weight.shape[:2])
    layer.weight.data[outputs[:, None] != inputs] = 0.0
    return layer


class Chain(nn.Module):
    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        self.one = nn.Conv2d(8, 12, 3, padding=1, bias=not norm)
        self.norm = nn.InstanceNorm2d(12, affine=True) if norm else nn.Identity()
        self.two, self.leave = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.leave(torch.relu(self.two(torch.relu(self.norm(self.one(x))))))


def chain(*, both: bool, norm: bool = False) -> Network:
    module = randomize(Chain(norm=norm))
    blocked(module.one, 1)
    if both:
        blocked(module.two, 2)
    return capture(module, (3, 8, 8))


def grouped(network: Network) -> dict[str, int]:
    return {layer.name: groups(layer.node) for layer in network.layers if groups(layer.node) > 1}


def gathers(network: Network) -> int:
    return sum(kind(node) == "index_select" for node in network.graph_module.graph.nodes)


@pytest.mark.parametrize("norm", [False, True])
def test_what_falls_into_groups_is_grouped_exactly_and_its_neighbours_are_reordered(norm: bool):
    network = chain(both=False, norm=norm)
    result = GroupChannels(least_channels=4).run(network, Context(images((3, 8, 8))))
    assert grouped(result) == {"one": 2}
    assert gathers(result) == 0
    for x in images((3, 8, 8), seed=4):
        assert torch.allclose(result(x), network(x), atol=ROUNDING)
    assert layer_sizes(result)[1].macs * 2 == layer_sizes(network)[1].macs
    assert result.history[-1]["grouped"] == {"one": 1.0}
    assert "gather would" in result.history[-1]["dense"]["two"]


def test_the_next_layer_is_grouped_too_where_its_inputs_may_be_gathered():
    network = chain(both=True)
    result = GroupChannels(least_channels=4, gather=True).run(network, Context(images((3, 8, 8))))
    assert grouped(result) == {"one": 2, "two": 2}
    assert gathers(result) == 1
    for x in images((3, 8, 8), seed=4):
        assert torch.allclose(result(x), network(x), atol=ROUNDING)


def test_inputs_that_are_concatenated_and_reordered_are_gathered():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv2d(3, 8, 1)
            self.a, self.b, self.leave = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.enter(x))
            return self.leave(torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], 1))

    module = randomize(Joined())
    outputs = torch.tensor([0, 1] * 4)
    for layer in (module.a, module.b):  # both read the same groups
        layer.weight.data[outputs[:, None] != torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])] = 0.0
    module.leave.weight.data[torch.tensor([0, 0, 1, 1])[:, None] != torch.tensor([0, 1] * 8)] = 0.0
    network = capture(module, (3, 9, 9))
    result = GroupChannels(least_channels=2, gather=True).run(network, Context(images((3, 9, 9))))
    assert grouped(result) == {"a": 2, "b": 2, "leave": 2}
    assert gathers(result) == 1  # the second of the first two finds its inputs in order
    for x in images((3, 9, 9), seed=4):
        assert torch.allclose(result(x), network(x), atol=ROUNDING)


def test_what_is_left_makes_up_for_what_goes():
    network = capture(randomize(Chain()), (3, 8, 8))
    batches = images((3, 8, 8), 6)
    context, x = Context(batches), torch.cat(batches)
    result = GroupChannels(least_channels=4).run(network, context)
    assert 0.5 < result.history[-1]["grouped"]["one"] < 0.9
    hardly = GroupChannels(least_channels=4, damping=1e6).run(network, context)
    assert sqnr_db(network(x), result(x)) > sqnr_db(network(x), hardly(x)) + 1
    kept = GroupChannels(least_channels=4, least_kept=0.95).run(network, context)
    assert grouped(kept) == {}
    assert "only 0." in kept.history[-1]["dense"]["one"]
    assert torch.allclose(kept(x), network(x), atol=ROUNDING)


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"least_channels": 4}, {"down.0"}),  # the next ones would have to be gathered
        ({"least_channels": 16}, set()),
        ({"least_channels": 4, "skip": frozenset({"down.0"})}, set()),
        ({"least_channels": 4, "gather": True}, {"down.0", "leave.0"}),
        ({"least_channels": 1, "gather": True, "pointwise": True}, {"down.0", "leave.0", "leave.3"}),
    ],
)
def test_who_is_grouped_is_chosen(fields: dict[str, object], layers: set[str]):
    network = captured("unet2d")
    result = GroupChannels(**fields).run(network, Context(images(network.shape)))  # type: ignore[arg-type]
    assert set(grouped(result)) == layers
    assert set(result.history[-1]["grouped"]) == layers
    assert set(result.history[-1]["dense"]) == {layer.name for layer in network.layers} - layers


def test_what_is_slower_on_the_target_stays_dense():
    network, batches = chain(both=True), images((3, 8, 8))

    def run(latency: dict[str, float], **fields: int) -> set[str]:
        def measured(found: Network) -> float:
            return 10 + sum(latency[name] for name in grouped(found))

        context = Context(batches, latency=measured)
        return set(grouped(GroupChannels(least_channels=4, gather=True, **fields).run(network, context)))

    assert run({"one": -1.0, "two": -1.0}) == {"one", "two"}
    assert run({"one": -1.0, "two": 0.5}) == {"one"}
    assert run({"one": 1.0, "two": 0.5}) == set()
    assert run({"one": 0.0, "two": 0.0}) == set()  # not faster
    assert run({"one": 1.0, "two": 0.5}, measurements=0) == {"one", "two"}


@pytest.mark.parametrize("fields", [{"groups": 1}, {"least_kept": 1.5}, {"images": 0}, {"damping": 0.0}])
def test_what_is_no_grouping_is_refused(fields: dict[str, float]):
    with pytest.raises(OptionError, match=r"two groups|above 0"):
        GroupChannels(**fields)  # type: ignore[arg-type]


def test_refusals_say_why():
    network = captured("unet2d")
    with pytest.raises(OptionError, match="no layer 'nobody'"):
        GroupChannels(skip=frozenset({"nobody"})).run(network, Context(images(network.shape)))
    with pytest.raises(DataError, match="no calibration images"):
        GroupChannels(least_channels=4).run(network, Context([]))
