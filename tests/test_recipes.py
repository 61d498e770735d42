import json
from dataclasses import replace

import pytest

from microtome.errors import OptionError
from microtome.graph.choosing.placement import ends
from microtome.graph.network import Network
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.recipes import RECIPES, Data, Recipe, Settings, recipe, run
from networks import EVERYTHING, captured, images

INT8 = recipe("int8", EVERYTHING)


@pytest.fixture(scope="module")
def finished() -> Network:
    network = captured("concat_up2d")
    return run(INT8, network, images(network.shape))


def test_the_chain_of_int8():
    assert [type(method) for method in INT8.methods] == [FoldBatchNorm, Quantize, CorrectBias]
    assert recipe("f32", EVERYTHING).methods == ()


def test_settings_reach_the_method():
    chosen = recipe(
        "int8", EVERYTHING, Settings(observer="percentile", percentile=99.5, skip=frozenset({"a"}), weight_bits=4)
    )
    quantize = chosen.methods[1]
    assert isinstance(quantize, Quantize)
    assert (quantize.observer, quantize.percentile, quantize.skip) == ("percentile", 99.5, frozenset({"a"}))
    assert (quantize.weight_bits, quantize.activation_bits, quantize.end_bits) == (4, 8, 8)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_describes_itself_in_plain_values(name: str):
    described = recipe(name, EVERYTHING, Settings(skip=frozenset({"b", "a"}), layer_bits={"c": (4, 8)})).describe()
    assert json.loads(json.dumps(described)) == described
    for record in described:
        if record["method"] == "Quantize":
            assert record["skip"] == ["a", "b"]
            assert record["layer_bits"] == {"c": [4, 8]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "int3"}, "no recipe 'int3'"),
        ({"observer": "median"}, "no observer 'median'"),
        ({"percentile": 50.0}, "above 50"),
        ({"percentile": 101.0}, "up to 100"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(settings: dict, message: str):
    with pytest.raises(OptionError, match=message):
        recipe(settings.pop("name", "int8"), EVERYTHING, Settings(**settings))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((Quantize(EVERYTHING),), "Quantize before folded"),
        ((FoldBatchNorm(), CorrectBias()), "CorrectBias before quantized"),
        ((FoldBatchNorm(), Quantize(EVERYTHING), FoldBatchNorm()), "FoldBatchNorm after quantized"),
        ((FoldBatchNorm(), Quantize(EVERYTHING), Quantize(EVERYTHING)), "Quantize after quantized"),
        ((*INT8.methods, CorrectBias()), "CorrectBias after bias_corrected"),
    ],
)
def test_a_chain_in_the_wrong_order_is_refused(methods: tuple, message: str):
    with pytest.raises(OptionError, match=message):
        Recipe("mine", methods)


def test_the_state_and_the_history_tell_what_was_done(finished: Network):
    assert finished.state == {"folded", "quantized", "bias_corrected"}
    assert [record["method"] for record in finished.history] == ["FoldBatchNorm", "Quantize", "CorrectBias"]
    assert all(record["seconds"] >= 0 for record in finished.history)
    assert json.loads(json.dumps(finished.history[1]))["observer"] == "mse"


def test_the_parent_stays_as_it_was(finished: Network):
    parent = captured("concat_up2d")
    before = parent.fingerprint()
    run(INT8, parent, images(parent.shape))
    assert parent.fingerprint() == before
    assert (parent.state, parent.history) == (frozenset(), ())


def test_no_method_leaves_the_network_alone():
    network = captured("concat_up2d")
    assert run(recipe("f32", EVERYTHING), network, []) is network


def test_a_compressed_network_is_refused(finished: Network):
    with pytest.raises(OptionError, match="already quantized"):
        run(INT8, finished, images(finished.shape))


def test_what_was_done_before_is_not_done_again():
    folded = FoldBatchNorm()(captured("concat_up2d"), [])
    result = run(INT8, folded, images(folded.shape))
    assert result.state == {"folded", "quantized", "bias_corrected"}


def test_a_run_that_was_interrupted_resumes_behind_the_last_finished_method(tmp_path, finished: Network):
    network = captured("concat_up2d")
    announced: list[str] = []

    def interrupted():
        if announced[-1] == "CorrectBias":
            raise KeyboardInterrupt
        yield from images(network.shape)

    class Stream:
        def __iter__(self):
            return interrupted()

    with pytest.raises(KeyboardInterrupt):
        run(INT8, network, Stream(), checkpoints=tmp_path, announce=announced.append)
    assert announced == ["FoldBatchNorm", "Quantize", "CorrectBias"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-FoldBatchNorm.pt2", "1-Quantize.pt2"]

    announced.clear()
    resumed = run(INT8, network, images(network.shape), checkpoints=tmp_path, announce=announced.append)
    assert announced == ["CorrectBias"]
    assert resumed.state == finished.state
    assert [record["method"] for record in resumed.history] == ["FoldBatchNorm", "Quantize", "CorrectBias"]
    x = images(network.shape, seed=3)[0]
    assert float((resumed(x) - finished(x)).detach().abs().max()) == 0


def test_a_state_that_nobody_knows_does_no_harm():
    network = replace(captured("concat_up2d"), state=frozenset({"distilled"}))
    assert "distilled" in run(INT8, network, images(network.shape)).state


def test_a_recipe_that_trains_reads_the_training_images(tmp_path):
    network, seen = captured("concat_up2d"), []
    data = Data(images(network.shape), training=images(network.shape, seed=1), tuning=images(network.shape, seed=2))
    chosen = recipe("qat", EVERYTHING, Settings(weight_bits=4, steps=3))
    assert chosen.trains
    result = run(chosen, network, data, checkpoints=tmp_path, watch=lambda *told: seen.append(told[:2]))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    record = result.history[-1]
    assert record["method"] == "Finetune"
    assert record["training"]["monitor"][-1] is not None
    assert json.loads(json.dumps(record)) == record
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0-FoldBatchNorm.pt2", "1-Quantize.pt2", "2-Finetune.pt2"]


def test_training_without_images_is_refused():
    network = captured("concat_up2d")
    with pytest.raises(OptionError, match="no training images"):
        run(recipe("qat", EVERYTHING), network, images(network.shape))


@pytest.mark.parametrize("name", ["ternary", "binary"])
def test_weights_of_three_or_two_values(name: str):
    network = captured("unet2d")
    data = Data(images(network.shape), training=images(network.shape, seed=1))
    result = run(recipe(name, EVERYTHING, Settings(steps=4)), network, data)
    inner = [layer for layer in result.layers if layer.name not in ends(result)]
    for layer in inner:
        axis = 1 if layer.op == "conv_transpose" else 0
        for channel in result.tensor(str(layer.weight.target)).movedim(axis, 0):
            assert len(channel.unique()) <= {"ternary": 3, "binary": 2}[name]
