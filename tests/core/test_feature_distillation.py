import pytest
import torch
from torch import Tensor

from microtome.core import feature_distillation as features
from microtome.core.feature_distillation import affinity, attention, hint, relation, similarity, variation


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(4 * 36).reshape(4, 6, 6) // 5 % 3
FORMS = {
    "hint": hint,
    "attention": attention,
    "similarity": similarity,
    "relation": relation,
    "affinity": affinity,
    "variation": lambda s, t: variation(s, t, LABELS),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_zero_where_both_agree_and_its_gradient_brings_them_closer(form: str):
    student, teacher = maps(4, 5, 6, 6).requires_grad_(), maps(4, 5, 6, 6, seed=1)
    assert float(FORMS[form](teacher, teacher)) == pytest.approx(0, abs=1e-6)
    loss = FORMS[form](student, teacher)
    loss.backward()
    slope = student.grad
    before = float(loss.detach())
    assert before > 1e-4
    length = 1e-2 * before / float(slope.square().sum())
    assert float(FORMS[form](student.detach() - length * slope, teacher)) < before


@pytest.mark.parametrize("form", [form for form in FORMS if form != "hint"])
def test_channels_may_be_fewer_and_the_scale_does_not_matter(form: str):
    student, teacher = maps(4, 2, 6, 6), maps(4, 5, 6, 6, seed=1)
    torch.testing.assert_close(FORMS[form](3 * student, teacher), FORMS[form](student, teacher), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(FORMS[form](student, 3 * teacher), FORMS[form](student, teacher), rtol=1e-3, atol=1e-6)


def test_a_hint_is_relative():
    teacher = maps(2, 3, 4)
    assert float(hint(0 * teacher, 9 * teacher)) == pytest.approx(1)


def test_attention_by_hand():
    # activities (1, 0) and (0, 4) of two places: unit vectors at right angles, whose squared distance is 2
    assert float(attention(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]))) == pytest.approx(2)


def test_similarity_by_hand():
    # images that are the same against images at right angles: rows (1, 1)/√2 against (1, 0) and (0, 1)
    same, apart = torch.ones(2, 2, 1), torch.eye(2).reshape(2, 2, 1)
    expected = 2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4
    assert float(similarity(same, apart)) == pytest.approx(expected)
    assert float(similarity(maps(1, 2, 3), maps(1, 4, 3))) == pytest.approx(0, abs=1e-6)


def test_relation_by_hand():
    # points on a line at 0, 1, 3: distances 1, 3, 2 over their mean 2; at 0, 2, 4: 2, 4, 2 over 8/3
    one, other = (torch.tensor(v)[:, None, None] for v in ([0.0, 1.0, 3.0], [0.0, 2.0, 4.0]))
    differences = [0.5 - 0.75, 1.5 - 1.5, 1.0 - 0.75]
    assert float(relation(one, other)) == pytest.approx(sum(0.5 * d * d for d in differences) / 3)
    assert float(relation(maps(2, 2, 3), maps(2, 4, 3))) == 0


def test_affinity_by_hand_and_of_many_places(monkeypatch):
    # cosines between two places: 1 against 0, on both sides of the diagonal
    same, apart = torch.ones(1, 2, 2), torch.eye(2)[None]
    assert float(affinity(same, apart)) == pytest.approx(2 / 4)
    monkeypatch.setattr(features, "MOST_PLACES", 4)
    wide = maps(1, 3, 8, 1)
    torch.testing.assert_close(affinity(wide, 2 * wide.flip(0)), torch.tensor(0.0), atol=1e-6, rtol=0)
    pooled = torch.nn.functional.avg_pool2d(wide, (2, 1))
    other = maps(1, 3, 4, 1, seed=3)
    torch.testing.assert_close(affinity(pooled, other), affinity(wide, other.repeat_interleave(2, 2)))


def test_variation_by_hand():
    # one class with places (1, 0) and (0, 1): both at 45° to their mean; the teacher's places are the same
    student, teacher = torch.eye(2)[None], torch.ones(1, 2, 2)
    assert float(variation(student, teacher, torch.zeros(1, 2))) == pytest.approx((1 - 0.5**0.5) ** 2)
    # each place a class of its own: each is its own mean
    assert float(variation(student, teacher, torch.tensor([[0, 1]]))) == pytest.approx(0, abs=1e-6)
