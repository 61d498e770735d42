from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from microtome.core.decomposition.kinds import KINDS
from microtome.core.distillation import divergence
from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.choosing.chain_costs import measured, not_slower
from microtome.graph.choosing.chain_sensitivity import chain_losses
from microtome.graph.choosing.rank_options import Option, Site, sites
from microtome.graph.choosing.sensitivity import before_scores
from microtome.graph.network import Network
from microtome.graph.watching.macs import layer_sizes
from networks import captured, images


def site(name: str, layer: str) -> Site:
    found = {one.name: what for one, what in sites(captured(name), least=0, skip=frozenset())}
    assert isinstance(found[layer], Site)
    return found[layer]


def built(network: Network, options: Sequence[Option]) -> Network:
    result = network.copy()
    for option in options:
        (layer,) = (one for one in result.layers if one.name == option.site.layer.name)
        edit.replace_layer(result.graph_module, layer, option.links())
    edit.finish(result.graph_module)
    return result


@pytest.mark.parametrize("objective", ["kl", "error"])
def test_losses_are_those_of_the_network_with_the_chain(objective):
    network, batches = captured("unet2d"), images((3, 16, 16))
    options = [site("unet2d", "leave.0").option(KINDS["tucker"], ranks) for ranks in ((8, 8), (2, 2))]
    found = chain_losses(network, {"leave.0": [option.links() for option in options]}, batches, objective=objective)[
        "leave.0"
    ]
    for option, loss in zip(options, found, strict=True):
        other, each = built(network, [option]), []
        for x in batches:
            expected, actual = network(x).detach(), other(x).detach()
            error = (expected - actual).square().mean() / (expected - expected.mean()).square().mean()
            each.append(float(divergence(actual, expected) if objective == "kl" else error))
        assert loss == pytest.approx(sum(each) / len(each), rel=1e-3)
    assert found[0] < found[1]


def test_losses_need_images():
    chain = site("unet2d", "up").option(KINDS["svd"], (4,)).links()
    with pytest.raises(DataError, match="no calibration images"):
        chain_losses(captured("unet2d"), {"up": [chain]}, [])
    with pytest.raises(DataError, match="NaN or infinite when up is factorized"):
        chain_losses(captured("unet2d"), {"up": [chain]}, [torch.full((1, 3, 16, 16), float("nan"))])


def test_all_layers_come_before_the_scores_of_a_network_with_one_output():
    network = captured("dense2d")
    assert before_scores(network) >= {layer.node for layer in network.layers}


def test_multiplications_of_a_site_are_those_of_the_layer():
    for name in ("unet2d", "residual3d", "dense2d", "transformer"):
        sizes = {size.name: size.macs for size in layer_sizes(captured(name))}
        for layer, found in sites(captured(name), least=0, skip=frozenset()):
            assert isinstance(found, Site)
            assert found.macs == sizes[layer.name]


def named(name: str):
    return SimpleNamespace(site=SimpleNamespace(layer=SimpleNamespace(name=name)))


def test_chains_that_are_slower_are_taken_out_one_by_one():
    changes = {"a": -2.0, "b": 1.0, "c": -1.0, "d": 0.5}
    calls = []

    def latency(options):
        calls.append(options)
        return 10 + sum(changes[option.site.layer.name] for option in options)

    chosen = [named(name) for name in changes]
    left, reasons = not_slower(chosen, latency=latency, build=lambda options: options, measurements=4)
    assert [option.site.layer.name for option in left] == ["a", "c"]
    assert set(reasons) == {"b", "d"}
    assert len(calls) == 2 + 4
    calls.clear()
    left, reasons = not_slower(chosen, latency=latency, build=lambda options: options, measurements=2)
    assert len(left) == 4  # both groups, a with b and c with d, gain
    assert len(calls) == 2 + 2


def test_all_are_taken_out_if_no_single_one_is_to_blame():
    def latency(options):  # any chain costs the same, however many there are
        return 10 + 2 * bool(options)

    left, reasons = not_slower([named("a"), named("b")], latency=latency, build=lambda options: options, measurements=9)
    assert left == []
    assert set(reasons.values()) == {"all chains together are slower on the target"}


def test_times_lie_between_those_of_the_ends():
    network = captured("unet2d")
    one = site("unet2d", "leave.0")
    own = [one.option(KINDS["tucker"], (n, n)) for n in (2, 4, 8)]

    def latency(other: Network) -> float:
        return 1.0 + 1e-6 * sum(size.macs for size in layer_sizes(other))

    total, whole, costs = measured(network, {"leave.0": own}, latency=latency, build=lambda o: built(network, o))
    assert total == pytest.approx(latency(network))
    every = sum(size.macs for size in layer_sizes(network))
    assert whole["leave.0"] == pytest.approx(total * one.macs / every)
    for option, cost in zip(own, costs["leave.0"], strict=True):
        assert cost == pytest.approx(whole["leave.0"] + 1e-6 * (option.macs - one.macs))
