import pytest
import torch

from microtome.graph.structure.costs import columns_left, prices
from microtome.graph.structure.groups import channel_groups
from microtome.graph.structure.removal import keep_units
from microtome.graph.watching.macs import layer_sizes
from networks import captured


@pytest.mark.parametrize(
    "name", ["unet2d", "concat_up2d", "residual3d", "dense2d", "transformer", "shared2d", "tied2d"]
)
def test_costs_are_those_of_the_network_that_is_left(name: str):
    network = captured(name)
    groups = [group for group in channel_groups(network) if group.reason is None]
    gone = {group.name: sorted({p * (group.units // group.parts) for p in range(group.parts)}) for group in groups}
    smaller = keep_units(network, {g.name: sorted(set(range(g.units)) - set(gone[g.name])) for g in groups})
    for of, count in (
        ("parameters", lambda n: n.parameters),
        ("macs", lambda n: sum(size.macs for size in layer_sizes(n))),
    ):
        price = prices(network, groups, of)
        assert price.total == count(network)
        for group in groups:
            price.remove(group.name, gone[group.name])
        assert price.total == count(smaller)


def test_columns_of_readers_by_hand():
    network = captured("unet2d")
    masks = columns_left(network, channel_groups(network), {"enter.0": [1], "up": [0, 3]})
    assert set(masks) == {"down.0.weight", "leave.0.weight"}
    below, beside = masks["down.0.weight"], masks["leave.0.weight"]
    assert (~below).any(0)[:, 0, 0].nonzero().flatten().tolist() == [1]
    assert (~beside).any(0)[:, 0, 0].nonzero().flatten().tolist() == [1, 16, 19]
    assert torch.equal(beside.all(0), beside.any(0))
    assert columns_left(network, channel_groups(network), {}) == {}
