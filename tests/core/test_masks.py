import pytest
import torch

from microtome.core.masks import keep_largest, keep_of_each, percentile, scheduled


def test_thresholds_by_hand():
    scores = torch.tensor([[3.0, 1.0], [4.0, 2.0]])
    assert [float(percentile(scores, share)) for share in (0.25, 0.5, 1.0)] == [1, 2, 4]
    assert float(percentile(scores, 0.0)) == -torch.inf
    with pytest.raises(ValueError, match="no share"):
        percentile(scores, 1.1)


def test_the_smallest_of_all_tensors_go():
    small, large = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[2.5], [9.0]])
    masks = keep_largest([small, large], 0.6)
    assert [m.tolist() for m in masks] == [[False, False, True], [[False], [True]]]
    assert [m.shape for m in masks] == [small.shape, large.shape]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_equal_scores_go_in_exactly_the_number_asked_for(share: float):
    masks = keep_largest([torch.ones(4), torch.tensor([1.0, 1.0, 0.0, 2.0])], share)
    assert sum(int((~m).sum()) for m in masks) == 8 * share
    assert share in (0.0, 1.0) or masks[1].tolist()[2:] == [False, True]


def test_what_is_gone_goes_first():
    (mask,) = keep_largest([torch.tensor([0.1, -torch.inf, 0.2, -torch.inf])], 0.5)
    assert mask.tolist() == [True, False, True, False]


def test_two_of_four_along_input_channels():
    scores = torch.tensor([[1.0, 4, 2, 3, 9, 8, 7, 6], [1, 1, 1, 1, 0, 0, 5, 1]])
    mask = keep_of_each(scores, 2, 4)
    assert mask.int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]
    assert torch.equal(keep_of_each(scores.T, 2, 4, axis=0), mask.T)


def test_each_tap_of_a_kernel_has_its_own_pattern():
    scores = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = keep_of_each(scores, 4, 8)
    assert torch.equal(mask.sum(1), torch.full((3, 2, 2), 4))


def test_a_shorter_last_block_keeps_as_many():
    assert keep_of_each(torch.tensor([[1.0, 2, 3, 4, 5, 6, 7]]), 2, 4).int().tolist() == [[0, 0, 1, 1, 0, 1, 1]]
    with pytest.raises(ValueError, match="4 of 4 is no pattern"):
        keep_of_each(torch.ones(1, 4), 4, 4)


def test_schedules_by_hand():
    assert [scheduled(k, 2, 0.0, 0.8) for k in range(3)] == pytest.approx([0, 0.7, 0.8])
    assert [scheduled(k, 4, 0.2, 0.6, "linear") for k in range(5)] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    with pytest.raises(ValueError, match="no stage 3 of 2"):
        scheduled(3, 2, 0.0, 0.5)
