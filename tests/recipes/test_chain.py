import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from microtome import recipes
from microtome.core.affine import fake_quantize
from microtome.core.distillation import distillation_loss
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.choosing.placement import ends
from microtome.graph.network import Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import quantizers
from microtome.methods.adaround import AdaRound
from microtome.methods.base import EMPTY, Context, Method, Phase
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.dynamic import QuantizeDynamic
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.gptq import Gptq
from microtome.methods.quantize import Quantize
from microtome.methods.reconstruct import Reconstruct
from microtome.progress import Silent
from microtome.recipes import Recipe, run
from microtome.recipes.tables import title
from networks import captured, images, told

INT8 = recipes.read("int8")


ALREADY = "Quantize: the network is quantized already"


class Said(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True)
class Prune(Method):
    """Set the smallest weights of each layer to zero, as a stand-in for what changes the structure."""

    share: float = 0.2

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[frozenset[str]] = frozenset({"pruned"})
    again: ClassVar[bool] = True

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        network = network.copy()
        for layer in network.layers:
            weight = network.tensor(str(layer.weight.target))
            kept = weight.abs() >= weight.abs().flatten().quantile(self.share)
            edit.set_constant(network.graph_module, str(layer.weight.target), weight * kept)
        return self.done(network)


@pytest.fixture(scope="module")
def finished() -> Network:
    network = captured("concat_up2d")
    return run(INT8, network, told(images(network.shape)))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((Quantize(),), "Quantize: it needs a network in the state folded"),
        ((FoldBatchNorm(), CorrectBias()), "CorrectBias: it needs a network in the state quantized"),
        ((FoldBatchNorm(), Quantize(), FoldBatchNorm()), "FoldBatchNorm: it changes the structure"),
        ((FoldBatchNorm(), Quantize(), Quantize()), ALREADY),
        (
            (FoldBatchNorm(), QuantizeDynamic(), Quantize()),
            ALREADY,
        ),
        ((*INT8.methods, CorrectBias()), "CorrectBias: the network is bias_corrected already"),
        ((*INT8.methods, Reconstruct()), "Reconstruct: it needs a network in the state float_biases"),
        ((*INT8.methods[:2], Gptq(), AdaRound()), "AdaRound: it needs a network in the state float_biases"),
        ((*INT8.methods[:2], AdaRound(), Reconstruct()), "Reconstruct: the network is rounded already"),
    ],
)
def test_a_chain_in_the_wrong_order_is_refused(methods: tuple, message: str):
    with pytest.raises(OptionError, match=message):
        Recipe("mine", methods)


LONG = (
    Prune(),
    Finetune(steps=20, norms="fixed"),  # a few small images say little of a norm's statistics
    FoldBatchNorm(),
    Prune(0.3),
    Finetune(steps=20),
    Quantize(weight_bits=4, activation_bits=4),
    Finetune(steps=30),
    Reconstruct(steps=20),
    Finetune(steps=10),
    Reconstruct(steps=5),
    CorrectBias(),
)


def test_structure_numbers_and_training_follow_one_another():
    network = captured("unet2d")
    context = told(images(network.shape), training=images(network.shape, seed=1))
    seen: list[float] = []
    x = images(network.shape, seed=7)[0]
    made = network
    chain = Recipe("long", LONG)
    for done in range(len(LONG)):
        made = run(chain, made, replace(context, teacher=network), done=done, until=done + 1)
        seen.append(float(distillation_loss(made(x), network(x)).detach()))
    assert [record["method"] for record in made.history] == [title(type(method)) for method in LONG]
    assert seen[1] < seen[0]  # what was pruned learns to do without
    assert seen[4] < seen[3]
    assert seen[6] < seen[5]  # and what was quantized, with it
    assert made.state == {"pruned", "finetuned", "folded", "quantized", "rounded", "reconstructed", "bias_corrected"}


# A block is kept if it is no worse on the calibration images; on others that may be worth a percent.
AS_GOOD = 1.02


@pytest.mark.parametrize("name", ["unet2d", "residual3d", "concat_up2d"])
def test_reconstruction_does_no_harm_to_what_was_trained(name: str):
    network = captured(name)
    gentle = Reconstruct(steps=60, rate=3e-3)  # few steps are long ones otherwise, for networks that nobody trained
    methods = (FoldBatchNorm(), Quantize(weight_bits=4, activation_bits=4), Finetune(steps=60), gentle)
    context = told(images(network.shape, count=6), training=images(network.shape, seed=1, count=6))
    chain = Recipe("trained", methods)
    trained = run(chain, network, context, until=3)
    after = run(chain, trained, replace(context, teacher=network), done=3)
    x = torch.cat(images(network.shape, seed=7, count=4))
    lost = [float(distillation_loss(made(x), network(x)).detach()) for made in (trained, after)]
    assert lost[1] < AS_GOOD * lost[0]
    for old, new in zip(quantizers(trained), quantizers(after), strict=True):
        if new.kind == "weight":  # still on the grids that training found
            weight = after.tensor(str(constant_source(new.node).target))
            torch.testing.assert_close(fake_quantize(weight, new.qparams), weight)
            assert torch.equal(old.qparams.scale, new.qparams.scale)


def test_the_state_and_the_history_tell_what_was_done(finished: Network):
    assert finished.state == {"folded", "quantized", "bias_corrected"}
    assert [record["method"] for record in finished.history] == ["FoldBatchNorm", "Quantize", "CorrectBias"]
    assert all(record["seconds"] >= 0 for record in finished.history)
    record = json.loads(json.dumps(finished.history[1]))
    assert (record["observer"], record["grids"]) == ("mse", {"activation": "mse", "weight": "mse"})
    assert "capabilities" not in record
    assert recipes.from_history("int8", finished.history).methods == INT8.methods


def test_the_parent_stays_as_it_was(finished: Network):
    parent = captured("concat_up2d")
    before = parent.fingerprint()
    run(INT8, parent, told(images(parent.shape)))
    assert parent.fingerprint() == before
    assert (parent.state, parent.history) == (frozenset(), ())


def test_no_method_leaves_the_network_alone():
    network = captured("concat_up2d")
    assert run(recipes.read("f32"), network) is network


def test_a_compressed_network_is_refused(finished: Network):
    with pytest.raises(OptionError, match="FoldBatchNorm: it changes the structure, and the network is quantized"):
        run(INT8, finished, told(images(finished.shape)))


def test_without_a_target_nothing_is_quantized():
    network = captured("concat_up2d")
    with pytest.raises(OptionError, match="what the target can do"):
        run(INT8, network, Context(images(network.shape)))


def test_what_was_done_before_is_not_done_again():
    folded = FoldBatchNorm().run(captured("concat_up2d"))
    result = run(INT8, folded, told(images(folded.shape)))
    assert result.state == {"folded", "quantized", "bias_corrected"}


def test_it_goes_on_from_the_middle(finished: Network):
    network = captured("concat_up2d")
    assert INT8.structural == 1
    context = told(images(network.shape))
    head = run(INT8, network, context, until=1)
    assert [record["method"] for record in head.history] == ["FoldBatchNorm"]
    assert run(INT8, head, context, done=1).fingerprint() == finished.fingerprint()


def test_methods_are_told_what_was_found():
    skip = frozenset({"deep"})
    chain = recipes.read("int8").with_fields(readers=frozenset(), skip=skip)
    assert chain.methods[1] == replace(INT8.methods[1], readers=frozenset(), skip=skip)
    assert (chain.methods[0], chain.methods[2]) == (INT8.methods[0], INT8.methods[2])
    dynamic = recipes.read("dynamic")
    assert dynamic.with_fields(readers=frozenset(), skip=skip) == dynamic  # it has no readers


def test_a_run_that_was_interrupted_resumes_behind_the_last_finished_method(tmp_path, finished: Network):
    network, said = captured("concat_up2d"), Said()

    class Stream:
        def __iter__(self):
            if said.lines[-1] == "int8: CorrectBias":
                raise KeyboardInterrupt
            yield from images(network.shape)

    with pytest.raises(KeyboardInterrupt):
        run(INT8, network, told(Stream(), progress=said), checkpoints=tmp_path)
    assert said.lines == ["int8: FoldBatchNorm", "int8: Quantize", "int8: CorrectBias"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-FoldBatchNorm.pt2", "1-Quantize.pt2"]

    said.lines.clear()
    resumed = run(INT8, network, told(images(network.shape), progress=said), checkpoints=tmp_path)
    assert said.lines == ["int8: CorrectBias"]
    assert resumed.state == finished.state
    assert [record["method"] for record in resumed.history] == ["FoldBatchNorm", "Quantize", "CorrectBias"]
    x = images(network.shape, seed=3)[0]
    assert float((resumed(x) - finished(x)).detach().abs().max()) == 0


def test_batches_are_shown_under_the_name_of_the_method():
    network, titles = captured("concat_up2d"), []

    class Batches(list):
        def titled(self, title: str) -> list:
            titles.append(title)
            return self

    run(INT8, network, told(Batches(images(network.shape))))
    assert titles == ["FoldBatchNorm", "Quantize", "CorrectBias"]


def test_a_state_that_nobody_knows_does_no_harm():
    network = replace(captured("concat_up2d"), state=frozenset({"distilled"}))
    assert "distilled" in run(INT8, network, told(images(network.shape))).state


def test_a_recipe_that_trains_reads_the_training_images(tmp_path):
    network = captured("concat_up2d")
    context = told(images(network.shape), training=images(network.shape, seed=1), tuning=images(network.shape, seed=2))
    chosen = recipes.read("qat", {"quantize.weight_bits": 4, "finetune.steps": 3})
    assert chosen.trains
    result = run(chosen, network, context, checkpoints=tmp_path)
    record = result.history[-1]
    assert record["method"] == "Finetune"
    assert record["training"]["monitor"][-1] is not None
    assert record["grids"] == {"activation": "learned", "weight": "learned"}
    assert json.loads(json.dumps(record)) == record
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0-FoldBatchNorm.pt2", "1-Quantize.pt2", "2-Finetune.pt2"]
    assert recipes.from_history("qat", result.history).methods == chosen.methods


def test_training_imitates_the_parent():
    network, x = captured("concat_up2d"), images((3, 16, 16), seed=4)[0]
    batches = images(network.shape)
    seen = []

    def loss(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        seen.append(teacher)
        return (student - teacher).square().mean()

    chosen = recipes.read("qat", {"finetune.steps": 1})
    run(chosen, network, told(batches, training=[x], loss=loss))
    assert torch.equal(seen[0], network(x))


def test_training_without_images_is_refused():
    network, said = captured("concat_up2d"), Said()
    with pytest.raises(OptionError, match="no training images"):
        run(recipes.read("qat"), network, told(images(network.shape), progress=said))
    assert said.lines == []  # before any work


@pytest.mark.parametrize("name", ["w2", "ternary", "binary"])
def test_weights_of_few_values(name: str):
    network = captured("unet2d")
    context = told(images(network.shape), training=images(network.shape, seed=1))
    result = run(recipes.read(name, {"finetune.steps": 4}), network, context)
    inner = [layer for layer in result.layers if layer.name not in ends(result)]
    for layer in inner:
        axis = 1 if layer.op == "conv_transpose" else 0
        for channel in result.tensor(str(layer.weight.target)).movedim(axis, 0):
            assert len(channel.unique()) <= {"w2": 4, "ternary": 3, "binary": 2}[name]


def test_no_image_is_read_where_the_recipe_says_so():
    class Unread:
        def __iter__(self):
            raise AssertionError("an image was read")

    network = captured("unet2d")
    result = run(recipes.read("data_free"), network, told(Unread()))
    assert {quantizer.kind for quantizer in quantizers(result)} == {"weight"}
    x = images(network.shape)[0]
    assert float((result(x) - network(x)).detach().abs().max()) < 0.1 * float(network(x).detach().abs().max())
    biases = [name for name in network.constants() if name.endswith("leave.0.bias")]
    plain = run(Recipe("plain", recipes.read("data_free").methods[:-1]), network, told())
    assert any(not torch.equal(result.tensor(name), plain.tensor(name)) for name in biases)


def test_layers_fall_back_to_float_where_much_is_gained():
    network = captured("unet2d")
    few = {"quantize.end_bits": "none", "quantize.weight_bits": 4}
    ends_ = {"enter.0", "leave.3"}
    for least, kept in ((-100.0, ends_), (100.0, set())):
        chosen = recipes.read("fallback", {**few, "quantize.fallback.least_gain_db": least})
        made = run(chosen, network, told(images(network.shape)))
        rows = made.history[1]["kept"]
        assert {row["layer"] for row in rows} == ends_
        assert {row["layer"] for row in rows if row["kept"]} == kept
        assert json.loads(json.dumps(rows)) == rows
        weights = {quantizer.name for quantizer in quantizers(made) if quantizer.kind == "weight"}
        assert weights == {layer.name for layer in network.layers} - kept


def test_a_budget_may_be_a_share():
    network = captured("unet2d")
    context = told(images(network.shape))
    half = {"quantize.budget.bits": "none", "quantize.budget.share": 0.5}
    plan = run(recipes.read("mixed", half), network, context).history[1]["plan"]
    weights = sum(network.tensor(str(layer.weight.target)).numel() for layer in network.layers)
    assert plan["budget"] == pytest.approx(weights * 4 / 8)
    assert plan["cost"] <= plan["budget"]
    assert {bits[1] for bits in plan["layer_bits"].values()} == {8}
    narrow = run(recipes.read("mixed", {"quantize.activation_bits": 4}), network, context).history[1]["plan"]
    assert {bits[1] for bits in narrow["layer_bits"].values()} == {4}
