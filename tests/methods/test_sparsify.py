from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.quantizers import weight_quantizer
from microtome.methods.adaround import AdaRound
from microtome.methods.base import Context
from microtome.methods.equalize import Equalize
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.gptq import Gptq
from microtome.methods.quantize import Quantize
from microtome.methods.reconstruct import Reconstruct
from microtome.methods.sparsify import Importance, Sparsify
from microtome.types import Capabilities, OperatorSupport, QType
from networks import UNSIGNED, captured, images, randomize, told


def weights(network: Network) -> dict[str, Tensor]:
    return {name: network.tensor(name) for name in {str(layer.weight.target): 0 for layer in network.layers}}


def zeros(network: Network) -> float:
    values = list(weights(network).values())
    return sum(int((v == 0).sum()) for v in values) / sum(v.numel() for v in values)


def context(network: Network) -> Context:
    return Context(images(network.shape))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_smallest_weights_of_all_layers_go(share: float):
    network = captured("unet2d")
    pruned = Sparsify(share, keep_least=0).run(network)
    values = torch.cat([w.flatten() for w in weights(network).values()])
    limit = values.abs().sort().values[round(share * len(values)) - 1]
    for name, before in weights(network).items():
        assert torch.equal(pruned.tensor(name), before * (before.abs() > limit))
    assert pruned.state == {"sparse"}
    assert pruned.history[-1]["sparsity"]["share"] == pytest.approx(share, abs=1e-3)
    unpruned = network.constants().keys() - weights(network)
    assert all(torch.equal(network.tensor(name), pruned.tensor(name)) for name in unpruned)


def test_each_layer_loses_the_same_share():
    network = captured("residual3d")
    pruned = Sparsify(0.75, scope="layer").run(network)
    for name, before in weights(network).items():
        after = pruned.tensor(name)
        assert int((after == 0).sum()) == round(0.75 * before.numel())
        assert float(before[after == 0].abs().max()) <= float(before[after != 0].abs().min())


@pytest.mark.parametrize("importance", get_args(Importance))
def test_every_importance_reaches_the_share_exactly(importance: str):
    network = captured("unet2d")
    batches = [(x, torch.randint(2, (2, 16, 16))) for x in images(network.shape)]
    data = replace(context(network), training=batches, label_loss=nn.functional.cross_entropy)
    pruned = Sparsify(0.6, importance=importance).run(network, data)
    total = sum(w.numel() for w in weights(network).values())
    assert round(zeros(pruned) * total) == round(0.6 * total)
    same = [(pruned.tensor(n) == 0) == (Sparsify(0.6).run(network).tensor(n) == 0) for n in weights(network)]
    assert all(bool(s.all()) for s in same) == (importance in ("magnitude", "square"))


@pytest.mark.parametrize("importance", ["gradient", "taylor", "second_order", "obd", "obs"])
def test_weights_that_read_nothing_go_first(importance: str):
    conv = randomize(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    network = capture(conv, (4, 8, 8))
    batches = [x * torch.tensor([1.0, 1, 0, 1])[:, None, None] for x in images((4, 8, 8))]
    pruned = Sparsify(54 / 228, importance=importance, keep_least=0).run(network, Context(batches))
    first = pruned.tensor("0.weight")
    assert not bool(first[:, 2].any())


def test_movement_keeps_what_training_makes_larger():
    network = capture(randomize(nn.Sequential(nn.Linear(4, 3))), (4,))
    weight = network.tensor("0.weight")
    batches = [(torch.eye(4)[k : k + 1], torch.zeros(1)) for k in range(4)]

    def loss(output: Tensor, _: Tensor) -> Tensor:
        return output[0, 2] - output[0, 0]  # makes the first output's weights larger and the last one's smaller

    pruned = (
        Sparsify(0.5, importance="movement").run(network, Context(training=batches, label_loss=loss)).tensor("0.weight")
    )
    scores = torch.stack([weight[0], torch.zeros(4), -weight[2]]).flatten()
    assert torch.equal(pruned.flatten() == 0, scores.argsort(stable=True).argsort() < 6)
    assert int((weight[0] > 0).sum()) in (1, 2, 3)


def test_movement_without_anything_to_learn_is_refused():
    network = captured("unet2d")
    with pytest.raises(OptionError, match="the loss has no gradient that movement could go by"):
        Sparsify(importance="movement").run(network, context(network))
    teacher = capture(randomize(nn.Conv2d(3, 2, 1), seed=3), network.shape)
    moved = Sparsify(importance="movement").run(network, replace(context(network), teacher=teacher))
    assert zeros(moved) == pytest.approx(0.5, abs=1e-4)


def test_zeros_stay_and_count():
    network = captured("unet2d")
    half = Sparsify(0.5).run(network)
    more = Sparsify(0.8, update=True).run(half, context(network))
    assert zeros(more) == pytest.approx(0.8, abs=1e-4)
    for name, before in weights(half).items():
        assert not bool(more.tensor(name)[before == 0].any())
    with pytest.raises(OptionError, match=r"nothing is left to prune: 80.0% of the weights are zero already"):
        Sparsify(0.7).run(more)
    patterned = Sparsify(pattern="2:4").run(network)
    with pytest.raises(OptionError, match="nothing is left to prune"):
        Sparsify(pattern="2:4").run(patterned)


def test_layers_that_hold_one_weight_are_pruned_once():
    pruned = Sparsify(0.5).run(captured("tied2d"))
    assert len(weights(pruned)) == 1
    assert zeros(pruned) == 0.5


def test_skipped_layers_are_left_alone():
    network = captured("unet2d")
    pruned = Sparsify(0.5, skip=frozenset({"up"})).run(network)
    assert bool(pruned.tensor("up.weight").all())
    assert pruned.history[-1]["sparsity"]["share"] == 0.5
    with pytest.raises(OptionError, match="no layer 'upp'"):
        Sparsify(skip=frozenset({"upp"})).run(network)
    with pytest.raises(OptionError, match="nothing is left to prune: the network has no layer with weights"):
        Sparsify().run(captured("nothing"))


@pytest.mark.parametrize(("pattern", "kept", "block"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("update", [False, True])
def test_patterns_along_input_channels(pattern: str, kept: int, block: int, update: bool):
    network = captured("unet2d")
    pruned = Sparsify(pattern=pattern, update=update).run(network, context(network))
    for layer in pruned.layers:
        weight = pruned.tensor(str(layer.weight.target))
        along = weight if kind(layer.node) == "conv" else weight.movedim(0, 1)
        if along.shape[1] == 3:
            assert bool(along.all())
            continue
        blocks = along.movedim(1, -1).reshape(-1, block)
        assert int((blocks != 0).sum(1).max()) == int((blocks != 0).sum(1).min()) == kept


def test_patterns_leave_depthwise_layers_alone():
    transposed = nn.ConvTranspose2d(12, 4, 2, groups=2)
    module = randomize(nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), transposed))
    pruned = Sparsify(pattern="2:4").run(capture(module, (12, 8, 8)))
    assert bool(pruned.tensor("0.weight").all())
    groups = pruned.tensor("2.weight").reshape(2, 6, 2, 2, 2)
    counts = (groups != 0).sum(1)  # of 6 channels: 2 of 4, and 2 of the 2 that follow
    assert bool((counts == 4).all())


def test_no_layer_empties():
    network = captured("unet2d").copy()
    small = network.graph_module.get_parameter("up.weight")
    small.data *= 1e-6
    with pytest.raises(OptionError, match=r"50% of zeros would leave up empty"):
        Sparsify(0.5, keep_least=0).run(network)
    pruned = Sparsify(0.5, keep_least=0.05).run(network)
    kept = pruned.tensor("up.weight") != 0
    assert int(kept.sum()) == round(0.05 * small.numel() + 0.49)
    assert float(small.detach()[kept].abs().min()) >= float(small.detach()[~kept].abs().max())
    assert zeros(pruned) == pytest.approx(0.5, abs=1e-4)


def test_settings_that_leave_nothing_are_refused():
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"share": 0.5, "keep_least": 1.0}):
        with pytest.raises(OptionError, match="must lie between 0 and 1"):
            Sparsify(**wrong)
    with pytest.raises(OptionError, match="99% of the weights cannot go where each layer keeps 2%"):
        Sparsify(0.99)
    with pytest.raises(OptionError, match="at least one stage"):
        Sparsify(stages=0)
    with pytest.raises(DataError, match="no images to take gradients on"):
        Sparsify(importance="obd").run(captured("unet2d"))


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "residual3d", "transformer"])
def test_what_is_left_makes_up_for_what_went(name: str):
    network = captured(name)
    x = torch.cat(images(network.shape))

    def error(**settings: object) -> float:
        return float(
            (Sparsify(0.5, **settings).run(network, context(network))(x) - network(x)).detach().square().mean()
        )

    assert error(update=True) < 0.6 * error()


def test_the_bias_takes_up_the_change_of_the_mean():
    network = capture(randomize(nn.Sequential(nn.Conv2d(3, 8, 3))), (3, 8, 8))
    x = torch.cat(images(network.shape))
    pruned = Sparsify(0.7, update=True, positions=10_000).run(network, context(network))
    assert torch.allclose(pruned(x).mean((0, 2, 3)), network(x).mean((0, 2, 3)), atol=1e-4)
    without = Sparsify(0.7).run(network)
    assert float((without(x) - network(x)).detach().mean((0, 2, 3)).abs().max()) > 0.01


def test_the_surgeon_loses_less_than_magnitude_where_inputs_are_correlated():
    network = capture(randomize(nn.Sequential(nn.Linear(12, 8))), (12,))
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator) * torch.logspace(-1, 1, 12)
    batches = [torch.randn(64, 12, generator=generator) @ mix for _ in range(4)]

    def error(importance: str) -> float:
        pruned = Sparsify(0.6, importance=importance, update=True).run(network, Context(batches))
        return float((pruned(torch.cat(batches)) - network(torch.cat(batches))).detach().square().mean())

    assert error("obs") < 0.8 * error("magnitude")


def test_stages_look_anew_at_what_matters():
    network = captured("unet2d")
    once = Sparsify(0.8, importance="obs", update=True).run(network, context(network))
    thrice = Sparsify(0.8, importance="obs", update=True, stages=3).run(network, context(network))
    assert zeros(thrice) == zeros(once) == pytest.approx(0.8, abs=1e-4)
    x = torch.cat(images(network.shape))
    lost = [float((n(x) - network(x)).detach().square().mean()) for n in (once, thrice)]
    assert lost[1] < lost[0]


@pytest.mark.parametrize("weight", [QType(8, narrow=True), QType(4, narrow=True), QType(8, False, False)])
def test_zeros_are_zeros_on_the_grid(weight: QType):
    network = captured("unet2d")
    operators = {k: OperatorSupport(UNSIGNED, weight) for k in ("conv", "conv_transpose", "linear")}
    data = Context(images(network.shape), capabilities=Capabilities("test", operators=operators))
    sparse = Equalize().run(FoldBatchNorm().run(Sparsify(0.7).run(network)), data)
    quantized = Quantize(weight_bits=weight.bits).run(sparse, data)
    assert "sparse" in quantized.state
    checked = 0
    for before, after in zip(Sparsify(0.7).run(network).layers, quantized.layers, strict=True):
        gone = network.tensor(str(before.weight.target)).new_tensor(0) == sparse.tensor(str(before.weight.target))
        grid = weight_quantizer(quantized, after)
        assert grid is not None
        value = quantized.tensor(str(after.weight.target))
        rounded = after.node.args[1].target(value, *_grid(quantized, after.node.args[1]))
        assert not bool(rounded[gone].any())
        checked += int(gone.sum())
    assert checked > 1000


def _grid(network: Network, node: torch.fx.Node) -> list[object]:
    return [network.tensor(str(a.target)) if isinstance(a, torch.fx.Node) else a for a in node.args[1:]]


def test_learned_rounding_moves_zeros_and_says_so():
    network = captured("unet2d")
    data = told(images(network.shape))
    quantized = Quantize(weight_bits=4).run(FoldBatchNorm().run(Sparsify(0.7).run(network)), data)
    for method in (Gptq(), AdaRound(steps=2), Reconstruct(steps=2)):
        assert "sparse" not in method.run(quantized, data).state
