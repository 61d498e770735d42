import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microtome.core.distillation import divergence
from microtome.core.output_distillation import (
    boundary_weights,
    channelwise,
    class_weights,
    decoupled,
    logit_error,
    mean_teacher,
)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_all_forms_are_zero_where_both_agree_and_above_where_not():
    one, other = logits(2, 3, 4, 5), logits(2, 3, 4, 5, seed=1)
    target = one.argmax(1)
    for form in (logit_error, channelwise, lambda s, t: decoupled(s, t, target)):
        assert float(form(one, one)) == pytest.approx(0, abs=1e-6)
        assert float(form(one, other)) > 0.01


def test_the_error_of_logits_is_relative():
    teacher = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # variance 1
    assert float(logit_error(teacher * 0, teacher)) == pytest.approx(1)
    assert float(logit_error(teacher * 0, 7 * teacher)) == pytest.approx(1)


def test_weights_choose_places():
    one, other = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    weights = torch.zeros(2, 4)
    weights[:, 1:3] = 2.0
    torch.testing.assert_close(divergence(one, other, weights=weights), divergence(one[..., 1:3], other[..., 1:3]))
    even = torch.full((2, 4), 3.0)
    torch.testing.assert_close(divergence(one, other, weights=even), divergence(one, other))
    torch.testing.assert_close(logit_error(one, other, even), logit_error(one, other))


def test_channels_are_compared_by_where_they_are_active():
    # one channel, two places: softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) it is (1/2, 1/2)
    teacher, student = torch.tensor([[[0.0, math.log(3)]]]), torch.zeros(1, 1, 2)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(channelwise(student, teacher)) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(channelwise(student + 5, teacher), channelwise(student, teacher))


def test_decoupled_with_equal_weights_is_the_divergence_in_two_parts():
    # KL = KL(target or not) + (probability of the rest) * KL(within the rest), equation 6 of the paper
    student, teacher, target = logits(5, 4), logits(5, 4, seed=1), torch.tensor([0, 1, 2, 3, 1])
    q, p = teacher.softmax(1), student.softmax(1)
    chosen = functional.one_hot(target, 4).bool()
    b_q, b_p = q[chosen], p[chosen]
    both = b_q * (b_q / b_p).log() + (1 - b_q) * ((1 - b_q) / (1 - b_p)).log()
    r_q, r_p = q[~chosen].reshape(5, 3), p[~chosen].reshape(5, 3)
    r_q, r_p = r_q / r_q.sum(1, keepdim=True), r_p / r_p.sum(1, keepdim=True)
    rest = (r_q * (r_q / r_p).log()).sum(1)
    torch.testing.assert_close((both + (1 - b_q) * rest).mean(), divergence(student, teacher))
    torch.testing.assert_close(decoupled(student, teacher, target, others=3.0), (both + 3 * rest).mean())


def test_decoupled_has_gradients_that_are_finite():
    student = logits(5, 4).requires_grad_()
    decoupled(student, logits(5, 4, seed=1), torch.tensor([0, 1, 2, 3, 1]), temperature=2.0).backward()
    assert bool(torch.isfinite(student.grad).all())
    assert bool(student.grad.any())


@pytest.mark.parametrize("sigmoid", [True, False])
def test_several_teachers_are_the_mean_of_their_probabilities(sigmoid: bool):
    each = [logits(2, 3, 4, seed=seed) for seed in range(3)]
    activate = torch.sigmoid if sigmoid else lambda v: v.softmax(1)
    mean = torch.stack([activate(one) for one in each]).mean(0)
    torch.testing.assert_close(activate(mean_teacher(each, sigmoid=sigmoid)), mean)
    assert mean_teacher(each[:1], sigmoid=sigmoid) is each[0]


def test_teachers_that_are_certain_stay_finite():
    sure = torch.full((1, 1, 2), 200.0)
    assert bool(torch.isfinite(mean_teacher([sure, -sure], sigmoid=True)).all())


def test_each_class_weighs_as_much_as_another():
    labels = torch.tensor([[0, 0, 0, 1], [0, 0, 3, 3]])
    weights = class_weights(labels, 5)
    sums = [float(weights[labels == label].sum()) for label in (0, 1, 3)]
    assert sums == pytest.approx([8 / 3] * 3)
    assert float(weights.mean()) == pytest.approx(1)


def test_places_near_a_border_weigh_more():
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    labels[:, 5:] = 1  # the border lies between rows 4 and 5
    weights = boundary_weights(labels, extra=3.0, width=2)[0, :, 0]
    near = torch.tensor([False, False, False, True, True, True, True, False, False])
    assert float(weights[near].unique()) == pytest.approx(4 * float(weights[~near].unique()))
    assert len(weights[near].unique()) == len(weights[~near].unique()) == 1
    assert float(weights.mean()) == pytest.approx(1)
    assert boundary_weights(labels[:, :3], extra=3.0).unique().tolist() == [1]
