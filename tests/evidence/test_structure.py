from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from microtome.evidence.structure import structure
from microtome.graph import edit
from microtome.graph.capture import capture
from microtome.graph.edit import Link
from microtome.graph.network import Network
from microtome.graph.operators import aten

SIZE = (1, 8, 8)


def chain(widths: Sequence[int], names: Sequence[str] = ("enter", "middle", "leave")) -> Network:
    """Three 3×3 convolutions with so many channels between them."""
    module, channels = nn.Sequential(), 1
    for name, width in zip(names, (*widths, 2), strict=True):
        module.add_module(name, nn.Conv2d(channels, width, 3, padding=1, bias=False))
        channels = width
    return capture(module, SIZE)


def test_layers_by_name_with_what_each_has():
    found = structure(chain((8, 4)), chain((3, 4)))
    assert found["alike"] is True
    assert found["parameters"] == [8 * 9 + 8 * 4 * 9 + 4 * 2 * 9, 3 * 9 + 3 * 4 * 9 + 4 * 2 * 9]
    assert found["macs"] == [64 * weights for weights in found["parameters"]]
    enter, middle, leave = found["layers"]
    assert (enter["parent"]["outputs"], enter["compressed"]["outputs"]) == (8, 3)
    assert (middle["parent"]["inputs"], middle["compressed"]["inputs"]) == (8, 3)
    assert leave["parent"] == leave["compressed"]


def test_the_same_shapes_without_zeros_are_no_news():
    assert structure(chain((8, 4)), chain((8, 4))) == {}


def test_zeros_are_counted():
    sparse = chain((8, 4)).copy()
    weight = sparse.tensor("middle.weight").clone()
    weight[:, :6] = 0
    edit.set_constant(sparse.graph_module, "middle.weight", weight)
    found = structure(chain((8, 4)), sparse)
    assert found["nonzero"] == [432, 432 - 6 * 4 * 9]
    assert found["parameters"] == [432, 432]


def test_a_factorized_layer_is_one_row():
    network = chain((8, 4)).copy()
    settings = ([1, 1], [0, 0], [1, 1], 1)
    links = [
        Link("first", aten.conv2d.default, torch.ones(2, 8, 1, 1), None, settings),
        Link("core", aten.conv2d.default, torch.ones(4, 2, 3, 3), None, ([1, 1], [1, 1], [1, 1], 1)),
    ]
    edit.replace_layer(network.graph_module, network.layers[1], links)
    edit.finish(network.graph_module)
    row = structure(chain((8, 4)), network)["layers"][1]
    assert row["name"] == "middle"
    assert row["compressed"]["links"] == 2
    assert (row["compressed"]["narrowest"], row["compressed"]["outputs"]) == (2, 4)
    assert row["compressed"]["weights"] == 16 + 72


def test_another_network_is_listed_behind_its_parent():
    found = structure(chain((8, 4)), chain((8, 5), names=("a", "b", "c")))
    assert found["alike"] is False
    assert [row["name"] for row in found["layers"]] == ["enter", "middle", "leave", "a", "b", "c"]
    assert [row["parent"] is None for row in found["layers"]] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(("groups", "shape"), [(2, (8, 2, 3, 3)), (1, (8, 4, 3, 3))])
def test_channels_of_grouped_layers(groups: int, shape: tuple[int, ...]):
    module = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=groups), nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
    )
    network = capture(module, SIZE)
    assert tuple(network.layers[1].weight.meta["val"].shape) == shape
    rows = structure(chain((8, 4)), network)["layers"][-2:]
    assert [(row["compressed"]["inputs"], row["compressed"]["outputs"]) for row in rows] == [(4, 8), (8, 6)]
