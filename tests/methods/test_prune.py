import math
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.structure.groups import channel_groups
from microtome.graph.structure.residuals import removable_blocks
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.base import Context
from microtome.methods.bias_analytic import CorrectBiasAnalytically
from microtome.methods.equalize import Equalize
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.prune import Prune
from microtome.methods.quantize import Quantize
from microtome.methods.sparsify import Sparsify
from networks import REAL, captured, images, randomize, told

SAME = 1e-4  # float32, with other kernels for other widths
IMPORTANCES = get_args(get_type_hints(Prune)["importance"])


def context(network: Network, **more: object) -> Context:
    return Context(images(network.shape), **more)


def macs(network: Network) -> int:
    return sum(size.macs for size in layer_sizes(network))


def widths(network: Network) -> list[int]:
    return [layer.node.meta["val"].shape[1] for layer in network.layers]


def error(network: Network, parent: Network) -> float:
    x = torch.cat(images(parent.shape))
    return float((network(x) - parent(x)).detach().square().mean())


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_the_share_goes_and_the_history_says_what(name: str, of: str):
    network = captured(name)
    pruned = Prune(0.3, of=of).run(network, context(network))
    record = pruned.history[-1]
    assert pruned.state == {"pruned"}
    assert record["parameters"] == [network.parameters, pruned.parameters]
    assert record["macs"] == [macs(network), macs(pruned)]
    before, after = record[of]
    assert 0.5 * before < after <= 0.7 * before
    groups = {group.name: group for group in channel_groups(network)}
    smaller = {group.name: group for group in channel_groups(pruned)}
    for group, (units, left) in record["pruned"].items():
        assert (groups[group].units, smaller[group].units) == (units, left)
    reasons = {row["group"]: row["reason"] for row in record["not_pruned"]}
    assert reasons == {name: group.reason for name, group in groups.items() if group.reason is not None}
    assert bool(torch.isfinite(pruned(images(network.shape)[0])).all())


@pytest.mark.parametrize("importance", sorted(set(IMPORTANCES) - {"random", "fpgm"}))
def test_dead_units_go_first_and_nothing_changes(importance: str):
    module = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 2, 1)),
    )
    randomize(module)
    dead = [2, 5, 7]
    for conv, norm, reader in ((module[0], module[1], module[3]), (module[3], module[4], module[6])):
        conv.weight.data[dead] = 0
        norm.weight.data[dead] = 0
        norm.bias.data[dead] = 0
        reader.weight.data[:, dead] = 0
    network = capture(module, (3, 8, 8))
    both = 12 * 12 * 9 - 9 * 9 * 9 + 3 * (27 + 3 + 3 + 2)
    pruned = Prune(both / network.parameters, importance=importance, repair=False).run(network, context(network))
    assert pruned.history[-1]["pruned"] == {"0": [12, 9], "3": [12, 9]}
    assert error(pruned, network) < SAME**2


def test_what_is_most_like_the_others_goes_first_by_the_geometric_median():
    conv = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    conv[0].weight.data[4] = conv[0].weight.data.mean(0)
    conv[2].weight.data[:, 4] = 100
    network = capture(conv, (3, 8, 8))
    pruned = Prune(0.1, importance="fpgm", repair=False).run(network, context(network))
    assert pruned.history[-1]["pruned"] == {"0": [8, 7]}
    assert float(pruned.tensor("2.weight").max()) < 100


def test_each_group_loses_the_same_share():
    network = captured("unet2d")
    pruned = Prune(0.5, scope="uniform", importance="l2").run(network, context(network))
    shares = [1 - left / units for units, left in pruned.history[-1]["pruned"].values()]
    assert len(shares) == 4
    assert max(shares) - min(shares) <= 1 / 16


def test_norms_that_are_folded_say_nothing():
    network = captured("unet2d")
    with_norms = Prune(0.2, importance="bn_scale").run(network, context(network))
    assert {row["group"] for row in with_norms.history[-1]["not_pruned"]} == {"up", "leave.3"}
    with pytest.raises(OptionError, match=r"nothing is left to prune: none of 5 groups can lose a unit \(leave.3: "):
        Prune(0.2, importance="bn_scale").run(FoldBatchNorm().run(network), context(network))


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "residual3d", "dense2d"])
def test_repair_lowers_the_error(name: str):
    network = captured(name)
    plain, repaired = (Prune(0.3, repair=repair).run(network, context(network)) for repair in (False, True))
    assert plain.history[-1]["pruned"] == repaired.history[-1]["pruned"]
    assert error(repaired, network) < 0.7 * error(plain, network)


def test_repair_finds_what_can_be_made_of_the_others():
    conv = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)))
    conv[0].weight.data[3] = 0.5 * conv[0].weight.data[0] - conv[0].weight.data[1]
    conv[1].weight.data[:, 3] *= 1e-3  # goes first; what it says, the others say too
    conv[1].weight.data[:, :3] *= 10
    network = capture(conv, (3, 8, 8))
    plain, repaired = (
        Prune(0.1, repair=repair, positions=10_000, damping=1e-6).run(network, context(network))
        for repair in (False, True)
    )
    assert repaired.history[-1]["pruned"] == {"0": [4, 3]}
    assert error(repaired, network) < 1e-3 * error(plain, network)


def test_widths_become_multiples():
    network = captured("unet2d")
    pruned = Prune(0.5, round_to=4, importance="l2").run(network, context(network))
    assert all(left % 4 == 0 for _, left in pruned.history[-1]["pruned"].values())
    coarse = Prune(0.6, round_to=16, importance="l2").run(network, context(network)).history[-1]["pruned"]
    assert coarse["down.0"] == [32, 16]  # a multiple of 16, and of 8 where there are only 16
    assert coarse["leave.0"] == [16, 8]
    with pytest.raises(OptionError, match=r"only [\d.]+% of the parameters can go, not 90.0%"):
        Prune(0.9, round_to=16).run(network, context(network))


def rounded_up(network: Network, lanes: int = 8) -> float:
    """Return what a target with so many lanes would take: idle ones count."""
    sizes = layer_sizes(network)
    return (
        1.0
        + sum(size.macs * math.prod(math.ceil(n / lanes) * lanes / n for n in size.weight[:2]) for size in sizes) / 1e6
    )


def test_the_best_multiple_is_measured():
    network = captured("unet2d")
    pruned = Prune(0.45, of="macs", round_to="auto", importance="l2").run(network, context(network, latency=rounded_up))
    found = pruned.history[-1]["widths"]
    assert found["chosen"] == 8
    assert set(found["latency_ms"]) == {"before", "1", "8", "16", "32"}
    assert all(left % 8 == 0 for _, left in pruned.history[-1]["pruned"].values())
    finest = Prune(0.45, of="macs", round_to="auto", importance="l2").run(
        network, context(network, latency=lambda n: rounded_up(n, 1))
    )
    assert finest.history[-1]["widths"]["chosen"] == 1


def test_the_measured_latency_is_reached():
    network = captured("unet2d")
    told = context(network, latency=rounded_up)
    pruned = Prune(0.3, of="ms", importance="l2", round_to=8).run(network, told)
    assert rounded_up(pruned) <= 0.7 * rounded_up(network)
    found = pruned.history[-1]["latency"]
    assert found["before_ms"] == pytest.approx(rounded_up(network), abs=1e-4)
    assert found["steps"][-1]["saved_ms"] >= 0.3 * found["before_ms"] - 1e-4
    with pytest.raises(OptionError, match=r"only 0.0% of the latency can go, not 30.0%"):
        Prune(0.3, of="ms").run(network, context(network, latency=lambda _: 1.0))
    for wrong in (Prune(of="ms"), Prune(round_to="auto")):
        with pytest.raises(OptionError, match="the latency on the target cannot be measured here"):
            wrong.run(network, context(network))


def test_labels_change_what_matters():
    network = captured("unet2d")
    batches = [(x, torch.zeros(2, 16, 16, dtype=torch.int64)) for x in images(network.shape)]

    labelled = Prune(0.3).run(network, context(network, training=batches, label_loss=functional.cross_entropy))
    without = Prune(0.3).run(network, context(network))
    assert labelled.history[-1]["pruned"] != without.history[-1]["pruned"]


def test_skipped_groups_stay():
    network = captured("unet2d")
    pruned = Prune(0.3, skip=frozenset({"down.0"})).run(network, context(network))
    assert "down.0" not in pruned.history[-1]["pruned"]
    assert {"group": "down.0", "reason": "it is skipped"} in pruned.history[-1]["not_pruned"]
    with pytest.raises(
        OptionError, match=r"the network has no group or layer 'down.O'; the nearest known one is 'down.0'"
    ):
        Prune(skip=frozenset({"down.O"})).run(network, context(network))


def test_nothing_left_to_prune():
    single = capture(randomize(nn.Sequential(nn.Conv2d(3, 2, 1))), (3, 8, 8))
    with pytest.raises(OptionError, match="nothing is left to prune: none of 1 groups can lose a unit"):
        Prune().run(single, context(single))
    with pytest.raises(OptionError, match="nothing is left to prune: none of 0 groups can lose a unit"):
        Prune().run(captured("nothing"), context(captured("nothing")))
    network = captured("unet2d")
    with pytest.raises(OptionError, match=r"only [\d.]+% of the parameters can go, not 60.0%"):
        Prune(0.6, most=0.2).run(network, context(network))
    with pytest.raises(OptionError, match="nothing is left to prune"):
        Prune(0.1, least=100).run(network, context(network))


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"most": 0.0}):
        with pytest.raises(OptionError, match="shares lie between 0 and 1"):
            Prune(**wrong)
    with pytest.raises(OptionError, match="pruning leaves one unit"):
        Prune(least=0)
    with pytest.raises(OptionError, match="widths cannot be multiples of 0"):
        Prune(round_to=0)
    with pytest.raises(DataError, match="no images to take gradients on"):
        Prune().run(captured("unet2d"))
    with pytest.raises(DataError, match="no calibration images"):
        Prune(importance="l1").run(captured("unet2d"))
    assert Prune(importance="l1", repair=False).run(captured("unet2d")).state == {"pruned"}


def test_blocks_go_by_what_their_absence_changes():
    network = captured("transformer")
    names = [block.name for block in removable_blocks(network)]
    assert len(names) == 2
    pruned = Prune(0.1, blocks=True).run(network, context(network))
    (gone,) = pruned.history[-1]["blocks"]
    assert gone in names
    assert pruned.parameters < 0.9 * network.parameters
    assert len(removable_blocks(pruned)) == 1
    (other,) = (name for name in names if name != gone)
    kept = Prune(0.1, blocks=True, skip=frozenset({gone})).run(network, context(network))
    assert list(kept.history[-1]["blocks"]) == [other]
    with pytest.raises(OptionError, match=r"only [\d.]+% of the parameters lie in blocks"):
        Prune(0.95, blocks=True).run(network, context(network))
    with pytest.raises(OptionError, match="nothing is left to prune: the network has no block that can be removed"):
        Prune(blocks=True).run(captured("shared2d"), context(captured("shared2d")))


def test_pruning_goes_on_where_it_ended():
    network = captured("unet2d")
    once = Prune(0.3).run(network, context(network))
    twice = Prune(0.3).run(once, replace(context(network), teacher=network))
    assert twice.parameters <= 0.7 * once.parameters


def test_zeros_that_are_to_be_held_stay_through_the_repair():
    network = captured("unet2d")
    sparse = Sparsify(0.6).run(network)
    pruned = Prune(0.2, importance="l2").run(sparse, context(network))
    zeros = [float((n.tensor("leave.0.weight") == 0).float().mean()) for n in (sparse, pruned)]
    assert zeros[1] > 0.8 * zeros[0] > 0.3


def test_what_is_known_of_channels_that_went_does_not_stay():
    network = captured("unet2d")
    data = told(images(network.shape))
    pruned = Prune(0.3, images=1).run(FoldBatchNorm().run(network), data)
    quantized = Quantize().run(Equalize().run(pruned, data), data)
    corrected = CorrectBiasAnalytically().run(quantized, data)
    assert error(corrected, pruned) < 2 * error(quantized, pruned)
