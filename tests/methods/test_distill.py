from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from microtome.core.distillation import distillation_loss
from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.structure.groups import channel_groups
from microtome.methods.base import Context
from microtome.methods.distill import Distill
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.training import teachers as answers
from networks import NETWORKS, captured, images, randomize, told

OUTPUTS = (("kl",), ("dice",), ("mse",), ("channel",), ("dkd",), ("kl", "dice"))
FEATURES = ("hint", "attention", "similarity", "relation", "affinity", "variation")


def apart(network: Network, teacher: Network) -> float:
    """Return how far a network is from another on images that were not trained on."""
    x = images(network.shape, seed=7)[0]
    return float(distillation_loss(network(x), teacher(x)).detach())


def other(name: str = "unet2d") -> Network:
    """Return a network of the same kind with other weights."""
    return capture(randomize(NETWORKS[name][0](), seed=5), NETWORKS[name][1])


def batches(count: int = 4, size: int = 4) -> list[Tensor]:
    return [torch.cat(images((3, 16, 16), size // 2, seed=seed)) for seed in range(count)]


@pytest.mark.parametrize("outputs", OUTPUTS, ids="+".join)
def test_every_form_brings_a_network_closer_to_a_teacher(outputs: tuple[str, ...]):
    network, teacher = captured("unet2d"), other()
    method = Distill(steps=40, outputs=outputs, temperature=2.0, norms="fixed")
    after = method.run(network, Context(training=batches(), teacher=teacher))
    assert apart(after, teacher) < 0.9 * apart(network, teacher)
    assert after.state == {"distilled"}
    assert apart(network, captured("unet2d")) == 0


@pytest.mark.parametrize("weighting", ["regions", "borders", "both"])
def test_places_can_have_weights(weighting: str):
    network, teacher = captured("unet2d"), other()
    method = Distill(steps=30, outputs=("kl", "mse"), weighting=weighting, norms="fixed")
    after = method.run(network, Context(training=batches(), teacher=teacher))
    assert apart(after, teacher) < 0.9 * apart(network, teacher)
    plain = replace(method, weighting="none").run(network, Context(training=batches(), teacher=teacher))
    assert after.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize("form", FEATURES)
def test_features_alone_draw_maps_together(form: str):
    network, teacher = captured("concat_up2d"), captured("unet2d")
    method = Distill(steps=20, outputs=(), features=(form,), rate=3e-2, check_every=1)
    after = method.run(network, Context(training=batches(2), teacher=teacher))
    first, last = losses(after)
    assert last < 0.97 * first
    assert after.constants().keys() == network.constants().keys()  # regressors are gone


def losses(network: Network) -> tuple[float, float]:
    curve = network.history[-1]["training"]["loss"]
    return curve[0], curve[-1]


def test_layers_can_be_named():
    context = Context(training=batches(1), teacher=captured("unet2d"))
    method = Distill(steps=1, features=("hint",), layers={"enter": "down.0"})
    assert method.run(captured("concat_up2d"), context).state == {"distilled"}
    with pytest.raises(OptionError, match="the student has no inner layer 'nowhere'"):
        replace(method, layers={"nowhere": "down.0"}).run(captured("concat_up2d"), context)


def test_a_narrower_copy_learns_from_its_parent():
    network = captured("unet2d")
    method = Distill(steps=60, width=0.5, features=("attention",), rate=3e-2)
    after = method.run(network, Context(training=batches()))
    start = Distill(steps=1, rate=1e-9, width=0.5).run(network, Context(training=batches(1)))
    assert after.parameters < 0.45 * network.parameters
    assert after.history[-1]["parameters"] == [network.parameters, after.parameters]
    assert [port.shape for port in after.outputs] == [port.shape for port in network.outputs]
    assert apart(after, network) < 0.6 * apart(start, network)
    widths = {group.name: group.units for group in channel_groups(network) if group.reason is None}
    assert {g.name: g.units for g in channel_groups(after) if g.reason is None} == {
        n: u // 2 for n, u in widths.items()
    }


def test_kept_weights_are_a_better_start_than_fresh_ones():
    network = captured("unet2d")
    found = {}
    for init in ("fresh", "kept"):
        method = Distill(steps=1, rate=1e-9, width=0.75, init=init, norms="fixed")
        found[init] = apart(method.run(network, Context(training=batches(1))), network)
    assert found["kept"] < found["fresh"]


def test_fresh_weights_of_the_network_as_it_is():
    network = captured("unet2d")
    after = Distill(steps=1, rate=1e-9, init="fresh", norms="fixed").run(network, Context(training=batches(1)))
    assert after.parameters == network.parameters
    assert apart(after, network) > 0.05


def test_a_student_of_the_users_own():
    own = captured("concat_up2d")
    context = Context(training=batches(), load=lambda name: {"mine.pt2": own}[name])
    after = Distill(steps=40, student="mine.pt2", rate=3e-2).run(captured("unet2d"), context)
    assert after.parameters == own.parameters
    assert apart(after, captured("unet2d")) < 0.8 * apart(own, captured("unet2d"))


def test_a_student_that_does_not_fit_is_refused_with_its_classes():
    context = Context(training=batches(1), load=lambda _: captured("dense2d"))
    with pytest.raises(OptionError, match=r"the student mine.pt2 has an output of shape \(4,\) where the parent's has"):
        Distill(student="mine.pt2").run(captured("unet2d"), context)
    context = replace(context, load=lambda _: captured("shared2d"))
    with pytest.raises(OptionError, match=r"the student mine.pt2 has an input of shape \(1, 8, 8\)"):
        Distill(student="mine.pt2").run(captured("unet2d"), context)
    with pytest.raises(OptionError, match=r"the student mine.pt2 cannot be loaded here"):
        Distill(student="mine.pt2").run(captured("unet2d"), Context(training=batches(1)))
    quantized = Quantize().run(FoldBatchNorm().run(captured("unet2d")), told(batches(1)))
    with pytest.raises(OptionError, match=r"the student mine.pt2 is quantized"):
        Distill(student="mine.pt2").run(captured("unet2d"), replace(context, load=lambda _: quantized))


def test_several_teachers_are_asked():
    named = {"one.pt2": other(), "other.pt2": captured("concat_up2d")}
    context = Context(training=batches(), load=named.__getitem__)
    x = images((3, 16, 16), seed=7)[0]
    mean = torch.stack([teacher(x).softmax(1) for teacher in named.values()]).mean(0).detach()

    def far(network: Network) -> float:
        return float((network(x).softmax(1) - mean).abs().mean())

    both = Distill(steps=60, teachers=tuple(named), norms="fixed", rate=2e-2).run(captured("unet2d"), context)
    alone = Distill(steps=60, teachers=("one.pt2",), norms="fixed", rate=2e-2).run(captured("unet2d"), context)
    assert far(both) < 0.7 * far(alone)


def test_a_teacher_that_is_not_there_is_one_sentence():
    def load(name: str) -> Network:
        raise DataError(f"there is no model {name}.", "Correct the path.")

    with pytest.raises(DataError, match=r"there is no model gone\.pt2"):
        Distill(teachers=("gone.pt2",)).run(captured("unet2d"), Context(training=batches(1), load=load))


def label_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def test_hard_labels_come_after_what_the_teacher_says(monkeypatch):
    network = captured("unet2d")
    pairs = [(x, torch.ones(4, 16, 16, dtype=torch.int64)) for x in batches()]
    asked = []
    say = answers.Teacher.__call__
    monkeypatch.setattr(answers.Teacher, "__call__", lambda self, x: asked.append(1) or say(self, x))
    context = Context(training=pairs, label_loss=label_loss)
    soft = Distill(steps=10, norms="fixed").run(network, context)
    hard = Distill(steps=10, hard_steps=20, norms="fixed").run(network, replace(context, tuning=batches(1)))
    assert len(asked) == 10 + 10 + 1  # the tuning image once, at the end
    x = images((3, 16, 16), seed=7)[0]
    ones = [float(one(x).softmax(1)[:, 1].mean()) for one in (soft, hard)]
    assert ones[1] > ones[0] + 0.1
    with pytest.raises(OptionError, match="hard_steps asks for references"):
        Distill(steps=1, hard_steps=1).run(network, Context(training=batches(1)))


class Interrupted:
    """Batches that end in an interrupt."""

    def __init__(self, given: list[Tensor], after: int) -> None:
        self.given, self.left = given, after

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.given:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("settings", [{"features": ("hint",)}, {"views": 2}], ids=["regressors", "answers"])
def test_interrupted_it_goes_on_to_the_same_result(settings: dict, tmp_path):
    network, given = captured("unet2d"), batches()
    method = Distill(steps=10, check_every=2, width=0.5, **settings)
    whole = method.run(network, Context(training=given))
    file = tmp_path / "half.training"
    with pytest.raises(KeyboardInterrupt):
        method.run(network, Context(training=Interrupted(given, 3), checkpoint=file))
    resumed = method.run(network, Context(training=given, checkpoint=file))
    assert resumed.fingerprint() == whole.fingerprint()
    assert not list(tmp_path.iterdir())  # neither checkpoint nor answers are left


def test_teachers_are_asked_once_for_each_view(monkeypatch):
    asked = []
    say = answers.Teacher._asked
    monkeypatch.setattr(answers.Teacher, "_asked", lambda self, x: asked.append(1) or say(self, x))
    given = batches(3)
    Distill(steps=9, views=1).run(captured("unet2d"), Context(training=given))
    assert len(asked) == 3


def test_without_a_teacher_none_is_asked(monkeypatch):
    monkeypatch.setattr(answers.Teacher, "__call__", lambda self, x: pytest.fail("asked"))
    pairs = [(x, torch.ones(4, 16, 16, dtype=torch.int64)) for x in batches(1)]
    context = Context(training=pairs, tuning=batches(1), label_loss=label_loss)
    after = Distill(steps=3, labels=1.0, check_every=1).run(captured("unet2d"), context)
    assert after.history[-1]["training"]["monitor"] == [None] * 3


def test_a_quantized_network_is_refused():
    assert "finetune" in (Distill().refusal(frozenset({"quantized"})) or "")
    assert Distill().refusal(frozenset({"folded"})) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 0.0},
        {"width": 0.5, "student": "a.pt2"},
        {"outputs": ()},
        {"temperature": 0.0},
        {"views": 0},
        {"views": 1, "features": ("hint",)},
        {"hard_steps": -1},
        {"steps": 0},
    ],
)
def test_settings_without_sense_are_refused(settings: dict):
    with pytest.raises(OptionError):
        Distill(**settings)
