from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.graph.capture import capture
from microtome.graph.choosing.placement import WIDER, Site, candidates, place, supported_layers
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.types import Capabilities, OperatorSupport, QType
from networks import EVERYTHING, REAL, UNSIGNED, WEIGHT, captured

SIGNED = QType(8)


def only(**support: OperatorSupport) -> Capabilities:
    return Capabilities("test", support, EVERYTHING.transparent)


def placed(
    network: Network,
    capabilities: Capabilities,
    skip: frozenset[str] = frozenset(),
    spans: dict[str, float] | None = None,
) -> tuple[Site, ...]:
    """Place quantizers where all values are equally wide, but for those kinds of nodes that `spans` names."""
    widths = {node: (spans or {}).get(kind(node), 1.0) for node in candidates(network, capabilities, skip)}
    return place(network, capabilities, widths, skip)


def edges(sites: tuple[Site, ...]) -> set[tuple[str, str]]:
    """Return all (kind of the value, kind of its reader) pairs."""
    return {(kind(v), kind(r)) for site in sites for v, readers in site.edges.items() for r in readers}


def readers_of(network: Network, sites: tuple[Site, ...], layer: str) -> list[QType]:
    node = next(found.node for found in network.layers if found.name == layer)
    return [site.qtype for site in sites for readers in site.edges.values() if node in readers]


@pytest.mark.parametrize("name", REAL)
def test_every_layer_reads_integers(name: str):
    network = captured(name)
    quantized = {(v, r) for site in placed(network, EVERYTHING) for v, rs in site.edges.items() for r in rs}
    for layer in network.layers:
        value, reader = layer.node.args[0], layer.node
        while (value, reader) not in quantized:
            assert kind(value) in EVERYTHING.transparent
            value, reader = value.all_input_nodes[0], value


@pytest.mark.parametrize("name", REAL)
def test_no_edge_has_two_quantizers(name: str):
    found = [(v, r) for site in placed(captured(name), EVERYTHING) for v, rs in site.edges.items() for r in rs]
    assert len(found) == len(set(found))


def test_values_that_meet_in_a_concatenation_share_a_grid():
    (site,) = [s for s in placed(captured("unet2d"), EVERYTHING) if len(s.edges) > 1]
    assert {kind(value) for value in site.edges} == {"prelu", "conv_transpose"}
    assert site.name == "down.0"  # the first layer that reads one of them


def test_a_quantizer_moves_before_a_pooling():
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(functional.max_pool2d(self.a(x), 2))

    network = capture(Pool(), (1, 16, 16))
    assert edges(placed(network, EVERYTHING)) == {("placeholder", "conv"), ("conv", "max_pool")}
    opaque = replace(EVERYTHING, transparent=frozenset())
    assert edges(placed(network, opaque)) == {("placeholder", "conv"), ("max_pool", "conv")}


def test_a_quantizer_stays_behind_an_operator_that_somebody_reads_in_float():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            pooled = functional.max_pool2d(self.a(x), 2)
            return self.b(pooled) + torch.tanh(pooled)

    assert ("max_pool", "conv") in edges(placed(capture(Both(), (1, 16, 16)), EVERYTHING))


def test_a_layer_that_wants_its_quantizer_directly_has_it_behind_the_concatenation():
    network = captured("concat_up2d")
    plain = OperatorSupport(UNSIGNED, WEIGHT)
    direct = only(conv=plain, conv_transpose=OperatorSupport(SIGNED, WEIGHT, directly=True))
    assert ("concat", "conv_transpose") in edges(placed(network, direct))
    assert readers_of(network, placed(network, direct), "up") == [SIGNED]
    moved = only(conv=plain, conv_transpose=OperatorSupport(SIGNED, WEIGHT))
    assert ("concat", "conv_transpose") not in edges(placed(network, moved))


def test_one_value_with_two_readers_gets_the_symmetric_grid():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.a = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
            self.b = nn.ConvTranspose2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.a(x) + self.b(x)

    network = capture(Fork(), (1, 8, 8))
    capabilities = only(conv=OperatorSupport(UNSIGNED, WEIGHT), conv_transpose=OperatorSupport(SIGNED, WEIGHT))
    sites = placed(network, capabilities)
    assert readers_of(network, sites, "a") == readers_of(network, sites, "b") == [SIGNED]
    assert readers_of(network, sites, "enter") == [UNSIGNED]


def test_an_output_is_quantized_behind_its_relu_where_the_target_asks():
    support = OperatorSupport(UNSIGNED, WEIGHT, output=(4,))
    found = edges(placed(captured("concat_up2d"), only(conv=support)))
    assert {("relu", "conv"), ("relu", "concat"), ("conv", "concat"), ("conv", "output")} <= found
    assert ("conv", "relu") not in found


def test_an_output_is_quantized_only_at_the_numbers_of_axes_that_the_target_names():
    on_matrices = OperatorSupport(UNSIGNED, WEIGHT, output=(2,))
    found = edges(placed(captured("transformer"), only(linear=on_matrices)))
    # the head reads the mean token; the other linear layers read all tokens
    assert {edge for edge in found if edge[0] == "linear"} == {("linear", "output")}


def test_skipped_layers_read_floats():
    network = captured("unet2d")
    names = frozenset(layer.name for layer in network.layers)
    assert placed(network, EVERYTHING, names) == ()
    sites = placed(network, EVERYTHING, frozenset({"leave.3"}))
    assert readers_of(network, sites, "leave.3") == []
    assert len(readers_of(network, sites, "leave.0") + readers_of(network, sites, "down.0")) >= 1


def test_only_the_dimensions_that_the_target_has():
    flat = only(conv=OperatorSupport(UNSIGNED, WEIGHT, spatial_dims=(2,)))
    assert supported_layers(captured("residual3d"), flat) == ()
    assert [layer.op for layer, _ in supported_layers(captured("unet2d"), flat)] == ["conv"] * 4
    assert [layer.op for layer, _ in supported_layers(captured("dense2d"), flat)] == ["conv"] * 3


def test_a_value_with_a_reader_of_its_own_is_not_drawn_into_a_much_wider_grid():
    wide = placed(captured("unet2d"), EVERYTHING, spans={"concat": 1.1 * WIDER})
    assert all(len(site.edges) == 1 for site in wide)
    assert ("concat", "conv") in edges(wide)
    narrow = placed(captured("unet2d"), EVERYTHING, spans={"concat": 0.9 * WIDER})
    # But the concatenation reads what that reader has: the value lies in memory once, in integers.
    (skip,) = [value for site in wide for value, readers in site.edges.items() if len(readers) > 1]
    assert {kind(reader) for reader in dict(pair for site in wide for pair in site.edges.items())[skip]} == {
        "conv",
        "concat",
    }
    assert ("concat", "conv") not in edges(narrow)


@pytest.mark.parametrize("name", REAL)
def test_calibration_watches_all_values_that_may_get_a_quantizer(name: str):
    network = captured(name)
    for spans in ({}, {"concat": 9.0}):
        assert {v for s in placed(network, EVERYTHING, spans=spans) for v in s.edges} <= set(
            candidates(network, EVERYTHING)
        )
