import itertools

import pytest
import torch

from microtome.errors import OptionError
from microtome.graph.structure.groups import ChannelGroup, channel_groups
from microtome.graph.structure.widths import free_groups, importance, narrowed, units_at
from networks import captured, images


def group(units: int, parts: int = 1) -> ChannelGroup:
    return ChannelGroup("some", "channels", units, parts, (), (), None)


def test_the_first_units_stay_or_the_most_important():
    assert units_at(group(6), 0.5).tolist() == [0, 1, 2]
    order = torch.tensor([3.0, 9.0, 1.0, 7.0, 2.0, 8.0])
    assert units_at(group(6), 0.5, order).tolist() == [1, 3, 5]
    assert units_at(group(6), 0.01, order).tolist() == [1]
    assert units_at(group(6), 1.0, order).tolist() == list(range(6))


def test_each_part_keeps_as_many():
    order = torch.tensor([3.0, 9.0, 1.0, 7.0, 2.0, 8.0])
    assert units_at(group(6, 2), 1 / 3, order).tolist() == [1, 5]
    assert units_at(group(6, 2), 2 / 3, order).tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize(
    ("width", "multiple", "count"), [(0.5, 8, 16), (0.4, 8, 16), (0.1, 8, 8), (0.1, 64, 3), (0.99, 8, 32)]
)
def test_counts_are_multiples_where_there_are_as_many(width: float, multiple: int, count: int):
    assert len(units_at(group(32), width, multiple=multiple)) == count


def test_narrower_widths_lie_inside_of_wider_ones():
    order = torch.rand(32, generator=torch.Generator().manual_seed(0))
    kept = [set(units_at(group(32), width, order).tolist()) for width in (0.2, 0.4, 0.6, 0.8)]
    assert all(small < large for small, large in itertools.pairwise(kept))


def test_the_most_important_units_have_the_longest_rows():
    network = captured("unet2d")
    (first, *_) = [g for g in channel_groups(network) if g.name == "down.0"]
    weight = network.tensor("down.0.weight")
    torch.testing.assert_close(importance(network, first), weight.flatten(1).norm(dim=1))


def test_a_narrower_network_has_narrower_layers():
    network = captured("unet2d")
    fingerprint = network.fingerprint()
    half = narrowed(network, 0.5)
    assert half(images(network.shape)[0]).shape == (2, 2, 16, 16)
    assert network.fingerprint() == fingerprint
    assert [tuple(half.tensor(str(layer.weight.target)).shape[:2]) for layer in half.layers] == [
        (8, 3),
        (16, 8),
        (16, 8),
        (8, 16),
        (2, 8),
    ]
    one = narrowed(network, {"down.0": 0.25})
    assert one.tensor("down.0.weight").shape[0] == 8
    assert one.tensor("leave.0.weight").shape == network.tensor("leave.0.weight").shape


def test_nothing_to_narrow_is_one_sentence():
    with pytest.raises(OptionError, match="no layer of this network can be made narrower"):
        free_groups(captured("nothing"))
