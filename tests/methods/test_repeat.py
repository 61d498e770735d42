from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from microtome import recipes
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.methods.base import EMPTY, Context, Method, Phase
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.methods.repeat import Repeat
from microtome.recipes import Recipe
from microtome.recipes.tables import from_table, to_table
from networks import captured, images

START = 8.0


@dataclass(frozen=True)
class Shrink(Method):
    """Multiply the first layer's weight by a half, so that each round can be told from the network."""

    factor: float = 0.5
    fails_below: float = 0.0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[frozenset[str]] = frozenset({"shrunk"})
    again: ClassVar[bool] = True

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        if size(network) < self.fails_below:
            raise OptionError("nothing is left to shrink.", "Stop.")
        network = network.copy()
        name = str(network.layers[0].weight.target)
        edit.set_constant(network.graph_module, name, network.tensor(name) * self.factor)
        edit.finish(network.graph_module)
        return self.done(network, {"factor_used": self.factor})


def size(network: Network) -> float:
    """Return the first weight's largest value: START, and halved by each round."""
    return float(network.tensor(str(network.layers[0].weight.target)).abs().max())


@pytest.fixture(scope="module")
def network() -> Network:
    found = captured("unet2d").copy()
    name = str(found.layers[0].weight.target)
    weight = found.tensor(name)
    edit.set_constant(found.graph_module, name, weight / weight.abs().max() * START)
    edit.finish(found.graph_module)
    return found


def told(**changes) -> Context:
    return replace(Context(score=lambda network: size(network) / 100, margin=0.065), **changes)


def test_the_last_acceptable_round_is_returned(network):
    """The score begins at 0.08 and is halved: 0.04 and 0.02 are within 0.065 of it, 0.01 is not."""
    result = Repeat((Shrink(),)).run(network, told())
    assert size(result) == START / 4
    (record,) = result.history
    assert [row["accepted"] for row in record["trajectory"]] == [True, True, True, False]
    assert [row["score"] for row in record["trajectory"]] == [0.08, 0.04, 0.02, 0.01]
    assert record["round"] == 2
    assert {"shrunk", "repeated"} <= result.state


def test_where_no_round_is_acceptable_the_network_stays_as_it_was(network):
    result = Repeat((Shrink(),), loss=0.001).run(network, told())
    assert size(result) == START
    assert "shrunk" not in result.state
    assert result.history[0]["round"] == 0


def test_patience_lets_a_later_round_recover(network):
    scores = iter([1.0, 1.0, 0.5, 0.99])  # the network, the parent, and two rounds
    context = told(score=lambda _: next(scores))
    assert size(Repeat((Shrink(),), rounds=2, patience=2).run(network, context)) == START / 4


def test_fields_change_from_round_to_round(network):
    loop = recipes.tables.from_table(
        {
            "method": "repeat",
            "methods": [{"method": "finetune", "steps": 3}],
            "each": {"finetune.rate": [0.1, 0.2]},
        },
        "here",
    )
    assert isinstance(loop, Repeat)
    assert [loop.of_round(number)[0].rate for number in (1, 2, 3)] == [0.1, 0.2, 0.2]


def test_a_method_that_can_do_no_more_ends_the_loop_and_keeps_what_was_done(network):
    result = Repeat((Shrink(fails_below=START / 2),)).run(network, told())
    assert size(result) == START / 4
    assert result.history[0]["trajectory"][-1]["ended"] == "nothing is left to shrink."


def test_in_the_first_round_its_error_is_an_error(network):
    with pytest.raises(OptionError, match="nothing is left"):
        Repeat((Shrink(fails_below=2 * START),)).run(network, told())


def test_an_interrupted_loop_goes_on_behind_the_last_round(network, tmp_path):
    asked: list[float] = []

    def score(candidate: Network) -> float:
        asked.append(size(candidate))
        if len(asked) == 4:  # network, parent, round 1, and then somebody pulls the plug
            raise KeyboardInterrupt
        return size(candidate) / 100

    context = told(score=score, checkpoint=tmp_path / "3-Repeat.training")
    with pytest.raises(KeyboardInterrupt):
        Repeat((Shrink(),)).run(network, context)
    asked.clear()
    asked += [0.0] * 10
    result = Repeat((Shrink(),)).run(network, context)
    assert asked[10:] == [START / 4, START / 8]
    assert size(result) == START / 4


def test_the_latency_is_in_the_course_where_it_can_be_measured(network):
    result = Repeat((Shrink(),), rounds=1).run(network, told(latency=lambda network: 3 * size(network)))
    assert [row["latency_ms"] for row in result.history[0]["trajectory"]] == [24.0, 12.0]


def test_without_a_score_there_is_no_loop(network):
    with pytest.raises(OptionError, match="no score"):
        Repeat((Shrink(),)).run(network)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ()}, "at least one method"),
        ({"rounds": 0}, "at least one"),
        ({"each": {"finetune.rat": (0.1,)}}, "no method of the loop"),
        ({"each": {"finetune.rate": ()}}, "no method of the loop"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(OptionError, match=message):
        Repeat(**{"methods": (Finetune(),), **fields})


def test_a_method_that_cannot_run_twice_is_refused_before_any_work():
    with pytest.raises(OptionError, match="in round 2, FoldBatchNorm"):
        Recipe("twice", (Repeat((FoldBatchNorm(), Quantize())),))


def test_a_loop_is_a_table_with_tables():
    loop = Repeat((Finetune(steps=7),), rounds=3, each={"finetune.rate": (0.1, 0.2)})
    table = to_table(loop)
    assert table["methods"][0]["steps"] == 7
    assert from_table(table, "here") == loop


def test_settings_seed_and_training_reach_the_methods_of_a_loop(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[[method]]\nmethod = "repeat"\n[[method.methods]]\nmethod = "finetune"\nsteps = 5\n')
    recipe = recipes.read(file, {"finetune.rate": 0.5, "repeat.rounds": 2}, seed=4)
    (loop,) = recipe.methods
    assert isinstance(loop, Repeat)
    assert loop.methods == (Finetune(steps=5, rate=0.5, seed=4),)
    assert recipe.trains


def test_what_is_no_method_in_a_loop_is_refused(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[[method]]\nmethod = "repeat"\nmethods = [{steps = 3}]\n')
    with pytest.raises(OptionError, match="its first line"):
        recipes.read(file)


def test_nested_training_sees_the_batches(network):
    batches = images(network.shape)
    loop = Repeat((Finetune(steps=2),), rounds=2)
    result = loop.run(network, told(score=lambda _: 1.0, training=batches))
    assert result.history[0]["round"] == 2
