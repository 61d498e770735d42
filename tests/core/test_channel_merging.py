import numpy as np
import torch
from torch import Tensor

from microtome.core.channel_merging import ChannelMoments, Merge, costs, explained, explained_by_one, merges, standing

ROUNDING = 1e-6  # of float32 products, relative to values near 1


def values(count: int = 400) -> Tensor:
    """Six channels: the second is three times the first plus 5, the fourth is constant, the last a sum of two."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((6, count), generator=generator)
    x[1], x[3], x[5] = 3 * x[0] + 5, 7.0, x[0] - x[2]
    return x


def moments(x: Tensor) -> ChannelMoments:
    found = ChannelMoments()
    for part in x.split(90, 1):
        found.update(part)
    return found


def test_moments_are_those_of_numpy():
    x, found = values(), moments(values())
    assert np.allclose(found.mean, x.double().mean(1), atol=ROUNDING)
    assert np.allclose(found.covariance, np.cov(x.double(), bias=True), atol=1e-5)
    assert found.count == 400


def test_of_many_positions_some_are_looked_at():
    found = ChannelMoments()
    found.update(torch.arange(200_000.0)[None])
    assert found.count == 50_000  # every fourth
    assert abs(float(found.mean[0]) - 99_998) < 1


def test_the_cost_is_what_no_line_explains():
    x = values()
    energy = torch.tensor([1.0, 2.0, 1.0, 9.0, 1.0, 3.0])
    found = costs(moments(x).covariance, energy)
    for j, k in ((0, 2), (5, 0), (1, 4)):
        _, residual, *_ = np.polyfit(x[k].double(), x[j].double(), 1, full=True)
        assert abs(float(found[j, k]) - float(energy[j]) * residual[0] / 400) < 1e-4
    assert float(found[1, 0]) < 1e-4  # a multiple
    assert float(found[3].max()) < 1e-4  # constant
    assert float(found[0, 3]) > 0.5  # which tells nothing


def test_the_cheapest_go_first_and_who_stands_for_others_takes_them_along():
    cost = torch.tensor([[0.0, 1.0, 9.0, 2.0], [2.0, 0.0, 3.0, 4.0], [9.0, 0.5, 0.0, 1.0], [9.0, 9.0, 9.0, 0.0]])
    # 2 goes into 1. Then 0 does, for 1 (into 3 it would be 2). Then 1 into 3: all three told by 3 cost 2 + 4 + 1,
    # of which 1.5 is paid already.
    expected = [Merge(2, 1, 0.5), Merge(0, 1, 1.0), Merge(1, 3, 5.5)]
    assert merges(cost) == expected
    assert merges(cost, least=3) == expected[:1]
    assert standing(expected) == {2: 3, 0: 3, 1: 3}
    assert standing(expected[:2]) == {2: 1, 0: 1}
    assert merges(torch.zeros(1, 1)) == []


def test_prices_do_not_fall():
    cost = torch.rand((12, 12), generator=torch.Generator().manual_seed(1))
    prices = [merge.cost for merge in merges(cost)]
    assert prices == sorted(prices)
    assert len(prices) == 11


def test_channels_are_told_by_all_others_or_by_one():
    x, found = values(), moments(values())
    gone, by = torch.tensor([1, 3, 5]), torch.tensor([0, 2, 4])
    matrix, shift = explained(found, gone, by)
    expected = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.0]])
    assert torch.allclose(matrix.float(), expected, atol=1e-4)
    assert torch.allclose(shift.float(), torch.tensor([5.0, 7.0, 0.0]), atol=1e-4)
    slope, shift = explained_by_one(found, gone, torch.tensor([0, 0, 2]))
    line = np.polyfit(x[2].double(), x[5].double(), 1)
    assert torch.allclose(slope.float(), torch.tensor([3.0, 0.0, float(line[0])]), atol=1e-4)
    assert torch.allclose(shift.float(), torch.tensor([5.0, 7.0, float(line[1])]), atol=1e-4)
    # of two copies both may stay
    twice = ChannelMoments()
    twice.update(torch.cat([x, x]))
    matrix, _ = explained(twice, torch.tensor([1]), torch.tensor([0, 6]))
    assert torch.allclose(matrix.float(), torch.tensor([[1.5, 1.5]]), atol=1e-4)


def test_nothing_is_told_by_what_is_constant():
    slope, shift = explained_by_one(moments(values()), torch.tensor([0]), torch.tensor([3]))
    assert float(slope[0]) == 0.0
    assert abs(float(shift[0]) - float(values()[0].mean())) < 1e-5
