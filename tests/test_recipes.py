import json
from dataclasses import replace

import pytest

from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.recipes import RECIPES, Recipe, recipe, run
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
    chosen = recipe("int8", EVERYTHING, observer="percentile", percentile=99.5, skip=frozenset({"a"}))
    quantize = chosen.methods[1]
    assert isinstance(quantize, Quantize)
    assert (quantize.observer, quantize.percentile, quantize.skip) == ("percentile", 99.5, frozenset({"a"}))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_describes_itself_in_plain_values(name: str):
    described = recipe(name, EVERYTHING, skip=frozenset({"b", "a"})).describe()
    assert json.loads(json.dumps(described)) == described
    if described:
        assert described[1] == {
            "method": "Quantize",
            "capabilities": "test",
            "observer": "mse",
            "percentile": 99.99,
            "search_weights": True,
            "skip": ["a", "b"],
        }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "int3"}, "no recipe 'int3'"),
        ({"observer": "median"}, "no observer 'median'"),
        ({"percentile": 50.0}, "above 50"),
        ({"percentile": 101.0}, "up to 100"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(settings: dict, message: str):
    with pytest.raises(OptionError, match=message):
        recipe(settings.pop("name", "int8"), EVERYTHING, **settings)


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
