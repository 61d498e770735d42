"""Channel groups of small networks, each with one thing that is easily got wrong; and what is left when units go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from channel_networks import MADE, Made, conv, made
from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.program import exported
from microtome.graph.structure.groups import ChannelGroup, channel_groups
from microtome.graph.structure.removal import keep_units
from networks import NETWORKS, captured, images, randomize
from pruning import ROUNDING, difference, some


def by_name(network: Network) -> dict[str, ChannelGroup]:
    return {group.name: group for group in channel_groups(network)}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_that_are_removed_are_as_good_as_zero(name: str) -> None:
    network = captured(name)
    x = images(NETWORKS[name][1], 1)[0]
    free = [group for group in channel_groups(network) if group.reason is None]
    assert [group.name for group in free if difference(network, group, x) >= ROUNDING] == []


@pytest.mark.parametrize("name", MADE)
def test_every_group_of_odd_networks_can_lose_units(name: str) -> None:
    network = made(name)
    x = images(network.shape, 1)[0]
    groups = channel_groups(network)
    assert [group.reason for group in groups if group.name != "last"] == [None] * (len(groups) - 1)
    for group in groups[:-1]:
        assert difference(network, group, x, some(group, 0.5, seed=1)) < ROUNDING, group.name


@pytest.mark.parametrize("name", ["unet2d", "dense2d", "transformer"])
def test_a_smaller_network_is_what_capture_would_have_made(name: str) -> None:
    network = captured(name)
    kept = {group.name: some(group) for group in channel_groups(network) if group.reason is None}
    smaller = keep_units(network, kept)
    again = exported(smaller).module()
    x = images(NETWORKS[name][1], 1)[0]
    assert torch.equal(again(x), smaller(x))
    ShapeProp(smaller.graph_module).propagate(x)
    for node in smaller.graph_module.graph.nodes:
        noted, real = getattr(node.meta.get("val"), "shape", ()), getattr(node.meta.get("tensor_meta"), "shape", ())
        assert all(a == b for a, b in zip(noted, real, strict=False) if isinstance(a, int)), node.name


def test_a_residual_sum_joins_what_writes_it_and_a_concatenation_does_not() -> None:
    groups = by_name(captured("residual3d"))
    assert groups["enter"].layers == ("enter", "second.0")
    groups = by_name(captured("dense2d"))
    reads = [m for m in groups["convs.0"].members if m.constant == "head.weight"]
    assert reads[0].units.tolist() == [-1] * 16 + list(range(16)) + [-1] * 16


def test_what_leaves_the_network_cannot_be_pruned_and_says_so() -> None:
    reasons = {name: group.reason for name, group in by_name(captured("unet2d")).items()}
    assert reasons.pop("leave.3") == "it is an output of the network"
    assert set(reasons.values()) == {None}
    assert by_name(captured("tied2d"))["b"].reason == "it is an input of the network"


def test_heads_are_units_and_every_head_is_as_wide_in_query_key_and_value() -> None:
    group = by_name(captured("transformer"))["qkv"]
    assert (group.kind, group.units) == ("heads", 2)
    rows = next(member for member in group.members if member.role == "writes")
    assert rows.units.tolist() == ([0] * 16 + [1] * 16) * 3


def test_the_table_of_biases_loses_the_column_of_a_head() -> None:
    network = made("attended")
    smaller = keep_units(network, {"qkv": [0, 3]})
    assert torch.equal(smaller.tensor("table"), network.tensor("table")[:, [0, 3]])


@pytest.mark.parametrize(
    ("name", "group", "units", "parts"),
    [
        ("depthwise", "first", 8, 1),
        ("few_groups", "first", 8, 1),
        ("few_groups", "deep", 6, 1),
        ("many_groups", "first", 8, 1),
        ("group_norm", "first", 16, 4),
        ("pixel_shuffle", "first", 8, 1),
        ("gated", "first", 8, 1),
        ("repeated", "first", 8, 1),
        ("shuffled", "first", 4, 1),
        ("flat", "first", 8, 1),
    ],
)
def test_units_are_as_fine_as_the_operators_allow(name: str, group: str, units: int, parts: int) -> None:
    found = by_name(made(name))[group]
    assert (found.units, found.parts) == (units, parts)


def test_a_layer_that_would_lose_all_its_rows_is_refused() -> None:
    with pytest.raises(OptionError, match="empties"):
        keep_units(made("padded"), {"first": range(8, 16)})  # those that the padding makes


def test_an_operator_without_a_rule_is_named() -> None:
    module = Made(lambda m, x: m.last(torch.cdist(m.first(x), m.first(x))), first=conv(1, 4), last=conv(4, 2))
    reason = by_name(capture(randomize(module), (1, 8, 8)))["first"].reason
    assert reason is not None
    assert "cdist" in reason


def test_a_softmax_over_channels_is_a_reason() -> None:
    module = Made(lambda m, x: m.last(m.first(x).softmax(1)), first=conv(1, 4), last=conv(4, 2))
    reason = by_name(capture(randomize(module), (1, 8, 8)))["first"].reason
    assert reason is not None
    assert "softmax" in reason


def test_one_weight_under_two_names_stays_one() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.last(m.b(functional.relu(m.a(m.first(x)))))

    module = Made(run, first=conv(1, 6), a=conv(6, 6), b=conv(6, 6), last=conv(6, 2))
    module.b.weight, module.b.bias = module.a.weight, module.a.bias
    network = capture(randomize(module), (1, 8, 8))
    group = by_name(network)["first"]
    smaller = keep_units(network, {"first": [0, 2, 5]})
    assert group.units == 6
    assert smaller.parameters == (1 * 3 + 3 * 3 + 3 * 2) * 9 + 3 + 3 + 2
