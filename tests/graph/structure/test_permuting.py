import pytest
import torch

from microtome.graph.network import Network
from microtome.graph.structure.groups import analyse
from microtome.graph.structure.permuting import moved, permutable, permute_units
from networks import NETWORKS, captured, images

# Sums over channels in float32, in another order.
ROUNDING = 1e-5


def some(network: Network) -> list[str]:
    analysis = analyse(network)
    return [group.name for group in analysis.groups if permutable(group, analysis.flow.aliases)]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "nothing"])
def test_in_another_order_the_network_computes_the_same(name: str):
    network = captured(name)
    shuffled = network.copy()
    analysis = analyse(shuffled)
    generator = torch.Generator().manual_seed(0)
    for group in analysis.groups:
        if permutable(group, analysis.flow.aliases):
            permute_units(shuffled, group, torch.randperm(group.units, generator=generator))
    x = images(network.shape)[0]
    assert torch.allclose(shuffled(x), network(x), atol=ROUNDING)
    assert (shuffled.fingerprint() != network.fingerprint()) == bool(some(network))


def test_which_groups_can_change_their_order():
    assert some(captured("unet2d")) == ["enter.0", "down.0", "up", "leave.0"]
    assert some(captured("residual3d")) == ["enter", "first.0"]
    assert some(captured("transformer")) == ["embed", "mlp.0"]  # no heads, no output
    assert some(captured("tied2d")) == []


def test_the_first_of_the_order_comes_first():
    network = captured("unet2d").copy()
    group = next(group for group in analyse(network).groups if group.name == "down.0")
    order = torch.arange(32).roll(5)
    before = network.tensor("down.0.weight")
    permute_units(network, group, order)
    assert torch.equal(network.tensor("down.0.weight"), before[order])
    up = next(member for member in group.members if member.constant == "up.weight")
    assert torch.equal(moved(up, group, order), order)
    skip = next(group for group in analyse(network).groups if group.name == "up")
    reader = next(member for member in skip.members if member.constant == "leave.0.weight")
    # of the concatenation the second half is reordered
    assert moved(reader, skip, torch.arange(16).flip(0)).tolist() == [*range(16), *range(31, 15, -1)]
