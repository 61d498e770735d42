from dataclasses import replace

import pytest
import torch

from microtome.core.distillation import distillation_loss
from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.methods.search import Search
from networks import captured, images

QUICK = {"steps": 4, "supernet_steps": 6, "pool": 2, "evaluations": 8, "by_round": 2, "widths": (0.25, 0.5)}


def batches() -> list[torch.Tensor]:
    return [torch.cat(images((3, 16, 16), 2, seed=seed)) for seed in range(3)]


def score(network: Network) -> float:
    """Return how near a network is to the parent of all tests, below 1."""
    x = images(network.shape, seed=7)[0]
    return 1 - float(distillation_loss(network(x), captured("unet2d")(x)).detach())


def test_the_front_holds_what_no_other_beats_and_networks_of_one_width():
    network = captured("unet2d")
    after = Search(**QUICK, loss=10.0).run(network, Context(training=batches(), score=score))
    assert after.state == {"searched"}
    assert after.parameters < network.parameters
    found = after.history[-1]
    rows = found["search"]
    assert found["measured"] == 8
    assert {tuple(set(row["widths"].values())) for row in rows if row["group"] == "uniform widths"} >= {
        (0.25,),
        (0.5,),
        (1.0,),
    }
    on_front = [row for row in rows if row["on_front"]]
    for one in on_front:
        for other in on_front:
            gains = [one["score"] >= other["score"], one["cost"] <= other["cost"], one["bytes"] <= other["bytes"]]
            strict = [one["score"] > other["score"], one["cost"] < other["cost"], one["bytes"] < other["bytes"]]
            assert not (all(gains) and any(strict))
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["parameters"] == after.parameters
    assert chosen["bytes"] * chosen["cost"] == min(row["bytes"] * row["cost"] for row in on_front)  # all lose less


def test_what_has_to_be_reached_is_reached_with_the_best_score():
    network = captured("unet2d")
    after = Search(**QUICK, smaller=3.0).run(network, Context(training=batches(), score=score))
    assert after.parameters * 3 <= network.parameters
    rows = after.history[-1]["search"]
    (chosen,) = [row for row in rows if row["chosen"]]
    small = [row for row in rows if row["parameters"] * 3 <= network.parameters]
    assert chosen["score"] == max(row["score"] for row in small)


def test_what_cannot_be_reached_is_approached():
    network = captured("unet2d")
    after = Search(**QUICK, smaller=1000.0).run(network, Context(training=batches(), score=score))
    assert after.history[-1]["search"]
    smallest = min(row["parameters"] for row in after.history[-1]["search"])
    assert after.parameters == smallest


def test_latency_is_measured_where_it_can_be():
    network = captured("unet2d")
    timed = []

    def latency(candidate: Network) -> float:
        timed.append(candidate.parameters)
        return 1.0 + candidate.parameters / 1000

    after = Search(**QUICK, faster=2.0).run(network, Context(training=batches(), latency=latency))
    assert len(timed) == after.history[-1]["measured"] == 8
    (chosen,) = [row for row in after.history[-1]["search"] if row["chosen"]]
    assert chosen["latency_ms"] == pytest.approx(1 + after.parameters / 1000, abs=1e-3)
    assert chosen["latency_ms"] * 2 <= 1 + network.parameters / 1000


def test_the_chosen_network_is_trained():
    network = captured("unet2d")
    context = Context(training=batches(), score=score)
    trained = Search(**{**QUICK, "steps": 60, "rate": 3e-2}, smaller=2.0).run(network, context)
    (chosen,) = [row for row in trained.history[-1]["search"] if row["chosen"]]
    assert score(trained) > chosen["score"] + 0.02


def test_an_interrupted_search_goes_on_with_the_next_measurement(tmp_path):
    network, seen = captured("unet2d"), []

    def broken(candidate: Network) -> float:
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(candidate.parameters)
        return score(candidate)

    file, method = tmp_path / "search.training", Search(**QUICK, smaller=3.0)
    whole = method.run(network, Context(training=batches(), score=score))
    with pytest.raises(KeyboardInterrupt):
        method.run(network, Context(training=batches(), score=broken, checkpoint=file))
    asked: list[int] = []

    def counted(candidate: Network) -> float:
        asked.append(candidate.parameters)
        return score(candidate)

    resumed = method.run(network, Context(training=batches(), score=counted, checkpoint=file))
    assert len(asked) == 8 - 5
    assert resumed.fingerprint() == whole.fingerprint()
    assert resumed.history[-1] == whole.history[-1]
    assert not list(tmp_path.iterdir())


def test_the_same_seed_finds_the_same_network():
    network, context = captured("unet2d"), Context(training=batches(), score=score)
    one, other = (Search(**QUICK, smaller=3.0).run(network, context) for _ in range(2))
    assert one.fingerprint() == other.fingerprint()


def test_nothing_to_choose_by_is_refused():
    with pytest.raises(OptionError, match="no score to choose by"):
        Search(**QUICK).run(captured("unet2d"), Context(training=batches()))
    with pytest.raises(OptionError, match="no training images"):
        Search(**QUICK).run(captured("unet2d"), Context(score=score))
    with pytest.raises(OptionError, match="no layer of this network can be made narrower"):
        Search(**QUICK, smaller=2.0).run(captured("tied2d"), Context(training=images((2, 8, 8))))


def test_a_quantized_network_is_refused():
    assert "quantized already" in (Search().refusal(frozenset({"quantized"})) or "")
    assert "zeros would be filled again" in (Search().refusal(frozenset({"sparse"})) or "")
    assert Search().refusal(frozenset({"folded"})) is None


@pytest.mark.parametrize("settings", [{"widths": ()}, {"widths": (1.5,)}, {"evaluations": 0}, {"supernet_steps": 0}])
def test_settings_without_sense_are_refused(settings: dict):
    with pytest.raises(OptionError):
        Search(**settings)
    assert replace(Search(), seed=3).seed == 3
