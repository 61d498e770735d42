import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from microtome.errors import DataError
from microtome.training.trainer import Trainer, size

WEIGHT = torch.tensor([[1.0, -2.0, 0.5]])


def examples(count: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return batches of inputs with their targets: a linear function that is to be found."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(8, 3, generator=generator) for _ in range(count)]
    return [(x, x @ WEIGHT.T) for x in inputs]


def student() -> nn.Linear:
    module = nn.Linear(3, 1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def labels(output: Tensor, teacher: Tensor | None, target: Tensor | None) -> Tensor:
    assert target is not None
    return (output - target).square().mean()


def likeness(output: Tensor, teacher: Tensor | None, target: Tensor | None) -> Tensor:
    assert teacher is not None
    return (output - teacher).square().mean()


def trainer(module: nn.Module, loss=labels, **settings) -> Trainer:
    groups = [{"params": list(module.parameters()), "lr": 0.1}]
    return Trainer(module, groups, loss, **{"steps": 100, **settings})


def test_a_float_module_learns_from_labels():
    module = student()
    curve = trainer(module, check_every=50).train(examples())
    torch.testing.assert_close(module.weight.detach(), WEIGHT, rtol=0.02, atol=0.02)
    assert not module.training
    assert curve["steps"] == [50, 100]
    assert curve["loss"][1] < curve["loss"][0]
    assert curve["monitor"] == [None, None]
    assert "score" not in curve


def test_it_imitates_a_teacher_without_labels():
    module = student()
    trainer(module, likeness, teacher=lambda x: -x @ WEIGHT.T).train([x for x, _ in examples()])
    torch.testing.assert_close(module.weight.detach(), -WEIGHT, rtol=0.02, atol=0.02)


def test_the_weights_with_the_least_tuning_loss_are_kept():
    # what is asked for in the end lies halfway to what is trained
    module, held_out = student(), [(x, 0.5 * y) for x, y in examples(seed=1)]
    curve = trainer(module, tuning=held_out, check_every=1).train(examples())
    assert min(curve["monitor"]) < 0.5 * curve["monitor"][-1]
    lost = sum(float(labels(module(x), None, y).detach()) for x, y in held_out) / len(held_out)
    assert lost == pytest.approx(min(curve["monitor"]), abs=1e-5)


def test_the_weights_with_the_best_score_are_kept_whatever_the_loss():
    module, weights = student(), []

    def score() -> float:
        assert not module.training
        weights.append(module.weight.detach().clone())
        return -abs(len(weights) - 3)  # best at the third look

    curve = trainer(module, steps=50, check_every=10, score=score, tuning=examples()).train(examples())
    assert torch.equal(module.weight.detach(), weights[2])
    assert curve["score"] == [-2, -1, 0, -1, -2]
    assert curve["monitor"] == [None] * 5  # the tuning loss was not asked for


def test_it_stops_when_nothing_improves_any_more():
    looks = itertools.count()
    curve = trainer(student(), check_every=1, patience=3, score=lambda: -next(looks)).train(examples())
    assert curve["steps"] == [1, 2, 3, 4]


def test_nothing_is_judged_before_its_time():
    module, asked = student(), []
    curve = trainer(module, steps=4, check_every=1, judged_from=3, score=lambda: asked.append(0) or 1.0).train(
        examples()
    )
    assert len(asked) == 2
    assert curve["score"] == [None, None, 1.0, 1.0]


def test_the_rate_warms_up_and_falls_to_zero():
    module, moved = student(), []

    def before(step: int) -> None:
        moved.append(module.weight.detach().clone())

    trainer(module, steps=40, before_step=before).train(examples())
    steps = [float((b - a).norm()) for a, b in itertools.pairwise([*moved, module.weight.detach()])]
    assert len(moved) == 40
    assert steps[-1] < 0.01 * max(steps)


def test_gradients_are_shortened_where_that_is_asked_for():
    # plain steps would show it at once; Adam's first step has the rate's length whatever the gradient is
    norms = []
    module = student()
    module.weight.register_post_accumulate_grad_hook(lambda p: norms.append(float(p.grad.norm())))
    far = [(x, 1000 * y) for x, y in examples()]
    trainer(module, steps=1, clipped=list(module.parameters())).train(far)
    assert norms[0] > 100
    whole = math.hypot(*(float(p.grad.norm()) for p in module.parameters()))
    assert whole == pytest.approx(1.0, rel=1e-3)


def test_interrupted_it_goes_on_to_the_same_weights(tmp_path):
    def broken():
        batches = examples()
        yield from batches
        yield batches[0]
        raise KeyboardInterrupt

    settings = {"steps": 8, "check_every": 2, "tuning": examples(seed=1)}
    whole, half, steps = student(), student(), []
    expected = trainer(whole, **settings).train(examples())
    file = tmp_path / "half.training"
    with pytest.raises(KeyboardInterrupt):
        trainer(half, **settings, checkpoint=file).train(broken())
    assert file.exists()
    resumed = student()
    found = trainer(resumed, **settings, checkpoint=file, before_step=steps.append).train(examples())
    assert steps == [4, 4, 5, 6, 7]  # once more when it goes on
    assert found == expected
    assert torch.equal(resumed.weight, whole.weight)
    assert not file.exists()


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(DataError, match="loss is nan at step 1"):
        trainer(student()).train([(torch.full((2, 3), float("nan")), torch.zeros(2, 1))])


def test_nothing_to_look_at_is_an_error():
    with pytest.raises(DataError, match="no training images"):
        trainer(student()).train([])
    with pytest.raises(DataError, match="no tuning images"):
        trainer(student(), steps=1, tuning=[]).train(examples())


def test_the_size_of_a_tensor():
    assert size(torch.tensor([3.0, -4.0])) == pytest.approx(12.5**0.5)
    assert size(torch.zeros(3)) == 1e-2


class Weighted(nn.Linear):
    """Takes two inputs, and returns two outputs of which the second is of no use."""

    def forward(self, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x) * times, x


def test_several_inputs_come_by_name_in_any_order():
    torch.manual_seed(0)
    module = Weighted(3, 1)
    batches = [({"times": torch.full((8, 1), 2.0), "x": x}, 2 * y) for x, y in examples()]
    trainer(module, inputs=("x", "times")).train(batches)
    torch.testing.assert_close(module.weight.detach(), WEIGHT, rtol=0.02, atol=0.02)


def test_zeros_that_are_held_stay_zero_and_do_not_count():
    module = student()
    module.weight.data = torch.tensor([[0.5, 0.0, 0.5]])
    norms = []
    module.weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.clone()))
    masks = [(module.weight, torch.tensor([[1.0, 0.0, 1.0]]))]
    trainer(module, masks=masks, steps=300).train(examples())
    assert float(norms[0][0, 1]) != 0  # it would have moved
    assert module.weight[0, 1].item() == 0
    x, y = (torch.cat(parts) for parts in zip(*examples(), strict=True))
    best = torch.linalg.lstsq(torch.cat([x[:, [0, 2]], torch.ones(len(x), 1)], 1), y).solution[:2, 0]
    torch.testing.assert_close(module.weight.detach()[0, [0, 2]], best, rtol=0.05, atol=0.05)


def test_a_penalty_is_added_and_is_not_what_is_shown():
    plain, drawn = student(), student()
    first = trainer(plain, steps=200).train(examples())
    second = trainer(drawn, steps=200, penalty=lambda: 3 * drawn.weight.abs().sum()).train(examples())
    assert float(drawn.weight.detach().abs().sum()) < 0.7 * float(plain.weight.detach().abs().sum())
    assert second["loss"][0] > first["loss"][0]
    loss = sum(float(labels(drawn(x), None, y).detach()) for x, y in examples()) / 4
    assert second["loss"][-1] == pytest.approx(loss, rel=0.1)  # without the penalty


class Clock:
    """Stands in for the module `time`: each look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_time_ends_training_as_if_the_steps_were_fewer(monkeypatch):
    clock, module, places = Clock(), student(), []
    monkeypatch.setattr("microtome.training.trainer.time", clock)

    def before(place: int) -> None:
        places.append(place)
        clock.now += 6  # a tenth of the minute for each step

    rates = []
    module.weight.register_post_accumulate_grad_hook(lambda _: rates.append(module.weight.detach().clone()))
    curve = trainer(module, steps=1000, minutes=1, before_step=before).train(examples())
    assert places == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert curve["steps"] == [10]
    moved = [float((b - a).norm()) for a, b in itertools.pairwise([*rates, module.weight.detach()])]
    assert moved[-1] < 0.2 * max(moved)  # the rate has fallen


def test_time_before_an_interruption_counts(monkeypatch, tmp_path):
    clock, file = Clock(), tmp_path / "half.training"
    monkeypatch.setattr("microtome.training.trainer.time", clock)

    def tick(_: int) -> None:
        clock.now += 6

    def broken():
        yield from examples()
        raise KeyboardInterrupt

    settings = {"steps": 1000, "check_every": 2, "minutes": 1, "before_step": tick, "checkpoint": file}
    with pytest.raises(KeyboardInterrupt):
        trainer(student(), **settings).train(broken())
    clock.now = 1000.0
    curve = trainer(student(), **settings).train(examples())
    assert curve["steps"][-1] == 9  # one tick more, for going on


def test_a_gradient_that_is_not_finite_changes_no_weight():
    module = student()

    def steep(output: Tensor, teacher: Tensor | None, target: Tensor | None) -> Tensor:
        return (output - output.detach()).abs().sqrt().sum()  # finite, and without a slope at 0

    with pytest.raises(DataError, match="gradient is nan at step 1"):
        trainer(module, steep, clipped=list(module.parameters())).train(examples())
    assert not bool(module.weight.any())


def test_work_is_kept_when_the_loss_is_not_finite(tmp_path):
    file, broken = tmp_path / "half.training", (torch.full((8, 3), float("nan")), torch.zeros(8, 1))
    settings = {"steps": 8, "check_every": 2, "checkpoint": file}
    with pytest.raises(DataError, match="loss is nan at step 4") as error:
        trainer(student(), **settings).train([*examples()[:3], broken])
    assert "the last checkpoint is kept" in error.value.hint
    steps: list[int] = []
    trainer(student(), **settings, before_step=steps.append).train(examples())
    assert steps[0] == 2


def test_the_size_of_what_is_not_held_at_zero():
    assert size(torch.tensor([3.0, 0.0, 0.0, 4.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])) == pytest.approx(12.5**0.5)
    assert size(torch.zeros(2), torch.zeros(2)) == 1e-2


def test_what_is_held_is_set_to_zero_and_has_no_part_in_the_length_of_the_gradient():
    module = student()
    module.weight.data = torch.tensor([[0.5, 0.3, 0.5]])
    mask = torch.tensor([[1.0, 0.0, 1.0]])
    trainer(module, masks=[(module.weight, mask)], clipped=[module.weight], steps=1).train(
        [(x, 1000 * y) for x, y in examples()]
    )
    assert module.weight[0, 1].item() == 0
    assert float((module.weight.grad * mask).norm()) == pytest.approx(1.0, rel=1e-3)
