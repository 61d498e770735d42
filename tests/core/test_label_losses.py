import math

import pytest
import torch
from torch.nn import functional

from microtome.core.label_losses import (
    UNKNOWN,
    answers_loss,
    class_loss,
    classes_apart_loss,
    logits,
    map_loss,
    numbers_loss,
    region_loss,
    structures,
)

NAN = float("nan")


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, 5, generator=generator), torch.randint(0, 3, (2, 4, 5), generator=generator)


def test_classes_without_reference_do_not_count():
    output, target = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, UNKNOWN, 3])
    expected = functional.cross_entropy(output[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(class_loss(output, target), expected)
    assert float(class_loss(output, torch.full((3,), UNKNOWN))) == 0


def test_answers_without_reference_do_not_count():
    output = torch.tensor([[0.0, 5.0], [-3.0, 0.0]], requires_grad=True)
    loss = answers_loss(output, torch.tensor([[1.0, NAN], [NAN, 0.0]]))
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.backward()
    assert output.grad[0, 1] == output.grad[1, 0] == 0


def test_numbers_without_reference_do_not_count():
    loss = numbers_loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.0, NAN], [NAN, 5.0]]))
    assert float(loss) == pytest.approx((4 + 1) / 2)
    assert float(numbers_loss(torch.ones(1, 1), torch.tensor([[NAN]]))) == 0


@pytest.mark.parametrize("channels", [3, 2])
def test_classes_that_are_scored_apart(channels: int):
    output = torch.randn(4, channels, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 2, UNKNOWN, 1])
    wanted = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]])[[0, 1, 3], 3 - channels :]
    expected = functional.binary_cross_entropy_with_logits(output[[0, 1, 3]], wanted)
    torch.testing.assert_close(classes_apart_loss(output, target, 3), expected)


def test_a_perfect_map_loses_nothing_and_an_opposite_one_much():
    _, target = maps()
    perfect = 50 * functional.one_hot(target, 3).movedim(-1, 1).float()
    assert float(map_loss(perfect, target)) == pytest.approx(0, abs=1e-4)
    assert float(map_loss(-perfect, target)) > 20


def test_the_dice_of_a_map_by_hand():
    # probabilities 0.5 and 0.5 everywhere; three voxels, one of them the structure
    target = torch.tensor([[0, 1, 0]])
    dice = 1 - (2 * 0.5 + 1) / (3 * 0.25 + 1 + 1)
    assert float(map_loss(torch.zeros(1, 2, 3), target)) == pytest.approx(math.log(2) + dice)


def test_voxels_without_reference_do_not_count():
    output, target = maps()
    hidden = target.clone()
    hidden[:, 1:] = UNKNOWN
    torch.testing.assert_close(map_loss(output, hidden), map_loss(output[:, :, :1], target[:, :1]))
    everywhere = torch.full_like(target, UNKNOWN)
    assert float(map_loss(output, everywhere)) == float(region_loss(output, everywhere, [[0], [1], [2]])) == 0
    beyond = torch.where(hidden == UNKNOWN, 7, hidden)  # such as the number of a class that the network has not
    torch.testing.assert_close(map_loss(output, beyond), map_loss(output, hidden))


def test_regions_may_overlap():
    _, target = maps()
    wanted = torch.stack([target > 0, target == 2], 1).float()
    perfect = 100 * wanted - 50
    assert float(region_loss(perfect, target, [[1, 2], [2]])) == pytest.approx(0, abs=1e-4)
    assert float(region_loss(perfect, target, [[1], [2]])) > 1


def test_channels_that_are_structures():
    assert structures(3, 2, None) == [[1], [2]]
    assert structures(3, 3, None) == [[0], [1], [2]]
    assert structures(2, 1, None) == [[1]]
    assert structures(4, 2, {"whole": (1, 2, 3), "core": (3,)}) == [(1, 2, 3), (3,)]


def test_probabilities_become_logits():
    chances = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    torch.testing.assert_close(logits(chances, apart=False).softmax(1), chances, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(chances, apart=True).sigmoid(), chances, atol=1e-5, rtol=0)
