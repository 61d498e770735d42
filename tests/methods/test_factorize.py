import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.structure.chains import bias_of
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.factorize import Factorize
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import runtime
from networks import captured, images, randomize, sqnr_db, told

SMALL = Factorize(ranks="share", share=0.6, least=400, round_to=2)
FLOAT_DB = 90.0  # the same operators in another order of summation


def context(network: Network, **more):
    return told(images(network.shape, count=8), **more)


def found(network: Network) -> dict[str, dict]:
    return {row["layer"]: row for row in network.history[-1]["factorized"]}


def reasons(network: Network) -> dict[str, str]:
    return {row["layer"]: row["reason"] for row in network.history[-1]["kept"]}


def macs(network: Network) -> int:
    return sum(size.macs for size in layer_sizes(network))


def damage(name: str, method: Factorize) -> float:
    network = captured(name)
    x = images(network.shape, seed=5)[0]
    return sqnr_db(network(x), method.run(network, context(network))(x))


@pytest.mark.parametrize("name", ["svd", "spatial", "tucker", "cp", "tt", "auto"])
@pytest.mark.parametrize("network", ["unet2d", "residual3d", "transformer"])
def test_history_says_what_became_of_each_layer(network: str, name: str):
    parent = captured(network)
    result = dataclasses.replace(SMALL, kind=name).run(parent, context(parent))
    rows, left = found(result), reasons(result)
    assert len(rows) >= 2
    assert rows.keys() | left.keys() == {layer.name for layer in parent.layers}
    made = {layer.name for layer in result.layers}
    gone = sum(before - after for before, after in (row["parameters"] for row in rows.values()))
    for layer, row in rows.items():
        before, after = row["parameters"]
        assert after <= 0.6 * before
        assert row["macs"][1] <= row["macs"][0]
        assert 0 < row["error"] < 1
        assert {one.rpartition(".")[0] for one in made if one.startswith(f"{layer}.")} == {layer}
        assert f"{layer}.last" in made or f"{layer}.core" in made
    biased = {layer.name for layer in result.layers if bias_of(result, layer) is not None}
    assert {name for name in made - biased if name.rpartition(".")[0] in rows} == {
        name for name in made if name.rpartition(".")[0] in rows and not name.endswith(".last")
    }  # the last link, and no other, has a bias
    extra = result.parameters - (parent.parameters - gone)
    assert 0 <= extra <= 64  # of it: biases that layers did not have
    assert macs(result) < macs(parent)


def test_more_energy_leaves_more_of_the_output():
    kept = [dataclasses.replace(SMALL, ranks="energy", energy=e) for e in (0.6, 0.9, 0.99)]
    quality = [damage("residual3d", method) for method in kept]
    assert quality == sorted(quality)
    assert quality[2] > quality[0] + 6


def test_errors_in_the_output_are_smaller_where_images_tell_and_where_the_last_is_fitted():
    weights = damage("unet2d", dataclasses.replace(SMALL, share=0.3, data=False, refit=False))
    aware = damage("unet2d", dataclasses.replace(SMALL, share=0.3, refit=False))
    fitted = damage("unet2d", dataclasses.replace(SMALL, share=0.3))
    assert aware > weights + 2
    assert fitted > aware + 0.5


def test_without_data_no_image_is_read():
    def unreadable():
        raise AssertionError("a batch was read")
        yield

    method = dataclasses.replace(SMALL, data=False, refit=False)
    assert found(method.run(captured("unet2d"), told(unreadable())))
    with pytest.raises(DataError, match="no calibration images"):
        SMALL.run(captured("unet2d"), told())
    with pytest.raises(DataError, match="no calibration images"):
        dataclasses.replace(method, refit=True).run(captured("unet2d"), told())


@pytest.mark.parametrize("unit", ["parameters", "macs", "ms"])
@pytest.mark.parametrize("name", ["tucker", "auto"])
def test_a_budget_is_held(unit: str, name: str):
    parent = captured("unet2d")

    def latency(network: Network) -> float:
        return 1e-3 * macs(network)

    method = dataclasses.replace(SMALL, kind=name, ranks="budget", unit=unit, share=0.5, candidates=(0.6, 0.3, 0.1))
    result = method.run(parent, context(parent, latency=latency))
    spent = {"parameters": lambda n: n.parameters - 16, "macs": macs, "ms": latency}[unit]  # a new bias
    assert 0.3 * spent(parent) < spent(result) <= 0.5 * spent(parent)
    wide = dataclasses.replace(method, share=0.9).run(parent, context(parent, latency=latency))
    x = images(parent.shape, seed=5)[0]
    assert sqnr_db(parent(x), wide(x)) > sqnr_db(parent(x), result(x))
    assert any("better spent" in reason for reason in reasons(wide).values())


def test_a_budget_that_nothing_fits_says_what_would():
    parent = captured("unet2d")
    method = Factorize(ranks="budget", share=0.05, least=400, round_to=2)
    with pytest.raises(OptionError, match="less than its layers need at the smallest ranks") as error:
        method.run(parent, context(parent))
    least = float(error.value.hint.split()[1])
    assert dataclasses.replace(method, share=least).run(parent, context(parent)).parameters < 0.5 * parent.parameters
    with pytest.raises(OptionError, match="time on the target cannot be measured"):
        dataclasses.replace(method, unit="ms").run(parent, context(parent))


def test_noise_decides_where_nothing_else_does():
    class Planted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.leave = nn.Conv2d(40, 48, 3, padding=1), nn.Conv2d(48, 2, 1)
            generator = torch.Generator().manual_seed(0)
            parts = [torch.randn(s, generator=generator) for s in ((48, 3), (3, 5, 3, 3), (5, 40))]
            low = torch.einsum("oa,abxy,bi->oixy", *parts)
            self.conv.weight.data = low + 0.1 * torch.randn(low.shape, generator=generator)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(torch.relu(self.conv(x)))

    network = capture(Planted().eval(), (40, 8, 8))
    method = Factorize(ranks="vbmf", round_to=1, data=False, refit=False)
    assert found(method.run(network, told()))["conv"]["ranks"] == [3, 5]
    assert found(dataclasses.replace(method, round_to=8).run(network, told()))["conv"]["ranks"] == [8, 8]


class Awkward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups, self.small = nn.Conv2d(16, 16, 3, groups=2, padding=1), nn.Conv2d(16, 16, 1)
        self.uneven = nn.Conv2d(16, 16, 4, padding="same")
        self.shared, self.wide = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.shared(self.shared(self.uneven(self.small(self.groups(x))))))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of the uneven one
def test_layers_that_stay_say_why():
    network = capture(randomize(Awkward()), (16, 8, 8))
    result = Factorize(ranks="energy", energy=1.0, least=500).run(network, context(network))
    assert reasons(result) == {
        "groups": "its channels are convolved in 2 groups",
        "small": "it has 256 weights, fewer than 500",
        "uneven": "its padding is uneven",
        "shared": "another layer shares its weight",
        "shared#2": "another layer shares its weight",
        "wide": "at ranks 16 and 16 it has 2304 weights, not fewer than 2304",
    }
    assert result.fingerprint() == network.fingerprint()
    skipped = dataclasses.replace(SMALL, skip=frozenset({"wide"})).run(network, context(network))
    assert reasons(skipped)["wide"] == "it was to be skipped"
    with pytest.raises(OptionError, match="no layer 'deep'"):
        dataclasses.replace(SMALL, skip=frozenset({"deep"})).run(network, context(network))


def test_more_multiplications_are_taken_only_where_bytes_alone_count():
    # a transposed convolution of 2×2 that doubles the size: a 1×1 one behind it runs four times as often
    network = capture(randomize(nn.Sequential(nn.ConvTranspose2d(16, 32, 2, stride=2))), (16, 8, 8))
    method = Factorize(kind="tucker", ranks="share", share=0.9, least=100, round_to=4)
    result = method.run(network, context(network))
    assert "multiplications, more than" in reasons(result)["0"]
    many = dataclasses.replace(method, bytes_only=True).run(network, context(network))
    assert many.parameters < network.parameters
    assert macs(many) > macs(network)


def test_chains_that_are_slower_on_the_target_are_put_back():
    parent = captured("unet2d")

    def latency(network: Network) -> float:  # each layer costs, so that chains of three cost more than they save
        return 50 * len(network.layers) + 1e-4 * macs(network)

    slower = SMALL.run(parent, context(parent, latency=latency))
    assert not found(slower)
    assert slower.fingerprint() == parent.fingerprint()
    assert set(reasons(slower).values()) >= {"its chain is slower on the target"}
    faster = SMALL.run(parent, context(parent, latency=lambda network: float(macs(network))))
    assert found(faster) == found(SMALL.run(parent, context(parent)))
    anyway = dataclasses.replace(SMALL, bytes_only=True).run(parent, context(parent, latency=latency))
    assert found(anyway).keys() == found(faster).keys()


def test_batch_norms_behind_fold_into_the_last_link_exactly():
    parent = captured("unet2d")
    result = SMALL.run(parent, context(parent))
    folded = FoldBatchNorm().run(result)
    assert not any(kind(node) == "batch_norm" for node in folded.graph_module.graph.nodes)
    x = images(parent.shape, seed=5)[0]
    assert sqnr_db(result(x), folded(x)) > FLOAT_DB
    assert "down.0.last.bias" in folded.constants()


@pytest.mark.parametrize("name", ["tucker", "cp", "tt", "spatial"])
@pytest.mark.parametrize("network", ["unet2d", pytest.param("residual3d", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_runtimes_compute_what_the_graph_does(target: str, network: str, name: str, tmp_path: Path):
    parent, module = captured(network), runtime(target)
    result = dataclasses.replace(SMALL, kind=name).run(parent, context(parent))
    assert found(result)
    session = module.open_session(module.export(result, tmp_path), threads=1, precision="f32")
    x = images(parent.shape, seed=5)[0]
    assert sqnr_db(result(x), torch.from_numpy(session.run(x.numpy()))) > FLOAT_DB
    x = x[:1]
    assert sqnr_db(result(x), torch.from_numpy(session.run(x.numpy()))) > FLOAT_DB


def test_it_can_be_quantized_and_factorized_again():
    parent = captured("unet2d")
    once = SMALL.run(parent, context(parent))
    again = dataclasses.replace(SMALL, least=100).run(once, context(once))
    assert again.parameters < once.parameters
    assert any(name.count(".") >= 2 for name in found(again).keys() | reasons(again).keys())
    quantized = Quantize().run(FoldBatchNorm().run(once), context(once))
    x = images(parent.shape, seed=5)[0]
    assert sqnr_db(once(x), quantized(x)) > 20
    assert "quantized already" in (SMALL.refusal(quantized.state) or "")


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"energy": 0.0}, {"share": 1.5}, {"candidates": (0.5, 2.0)}):
        with pytest.raises(OptionError, match="is a share above 0, at most 1"):
            Factorize(**wrong)
    for wrong in ({"round_to": 0}, {"images": 0}, {"positions": 0}, {"measurements": -1}, {"candidates": ()}):
        with pytest.raises(OptionError, match="needs ranks, images and positions"):
            Factorize(**wrong)
