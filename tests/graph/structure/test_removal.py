"""What cannot be removed is refused in a sentence, and what the caller passed stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from channel_networks import made
from microtome.errors import OptionError
from microtome.graph.structure.groups import channel_groups
from microtome.graph.structure.removal import keep_units
from networks import captured


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"up": []}, "empties"),
        ({"nowhere": [0]}, "no group"),
        ({"up": [0, 16]}, "0 to 15"),
        ({"up": [-1]}, "0 to 15"),
        ({"up": [0.5]}, "numbers"),
        ({"leave.3": [0]}, "output of the network"),
    ],
)
def test_what_cannot_be_kept_is_refused(kept: dict[str, list[int]], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        keep_units(captured("unet2d"), kept)


def test_parts_keep_equally_many() -> None:
    network = made("group_norm")
    assert keep_units(network, {"first": [0, 1, 4, 6]}).tensor("norm.weight").shape == (4,)
    with pytest.raises(OptionError, match="keep 2, 1, 0, 0 units"):
        keep_units(network, {"first": [0, 1, 4]})


def test_a_quantized_network_is_refused() -> None:
    network = captured("unet2d").copy()
    graph = network.graph_module.graph
    layer = network.layers[0].node
    with graph.inserting_before(layer):
        quantizer = graph.call_function(
            torch.ops.aten.fake_quantize_per_tensor_affine.default, (layer.args[0], 0.1, 0, -128, 127)
        )
    layer.args = (quantizer, *layer.args[1:])
    with pytest.raises(OptionError, match="quantized"):
        keep_units(network, {"up": [0]})


def test_a_weight_in_a_format_of_its_own_is_refused() -> None:
    network = captured("unet2d")
    encoded = replace(network, formats={"up.weight": object()})
    with pytest.raises(OptionError, match=r"up\.weight"):
        keep_units(encoded, {"up": [0]})


def test_the_network_that_was_given_stays_whole() -> None:
    network = captured("unet2d")
    before = network.fingerprint()
    smaller = keep_units(network, {"up": [3, 1], "down.0": range(30)})
    assert network.fingerprint() == before
    assert torch.equal(smaller.tensor("up.bias"), network.tensor("up.bias")[[1, 3]])
    assert (smaller.inputs, smaller.outputs, smaller.state) == (network.inputs, network.outputs, network.state)
    assert not smaller.graph_module.get_parameter("up.bias").requires_grad


def test_all_units_kept_is_the_same_network() -> None:
    network = captured("unet2d")
    everything = {group.name: range(group.units) for group in channel_groups(network)}
    assert keep_units(network, everything).fingerprint() == network.fingerprint()
