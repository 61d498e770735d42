import math

import pytest
import torch

from microtome.core.removal import Axis, PerUnit, Pool, Sizes, remove_evenly, remove_least


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[3], [1], [2], [4]]),
        ({"least": 3}, [[3], [1]]),
        ({"most": 0.5}, [[3], [1]]),
        ({"step": 2}, [[3], [1, 2]]),
        ({"step": 4}, [[3]]),
        ({"step": 5}, []),
        ({"least": 5}, []),
    ],
)
def test_portions_by_hand(settings: dict[str, float], expected: list[list[int]]):
    assert Pool(torch.tensor([9.0, 1, 2, 0, 3]), **settings).portions() == expected


def test_parts_lose_equally_many():
    pool = Pool(torch.tensor([5.0, 1, 9, 2, 0, 1]), parts=2)
    assert pool.portions() == [[1, 4], [0, 5]]
    assert Pool(pool.scores, parts=2, step=4).portions() == [[1, 4]]
    assert Pool(pool.scores, parts=3).portions() == [[1, 3, 4]]


def sizes() -> Sizes:
    """Return two layers: 8 units that 4 rows read, and the 4 that nothing reads; each unit has a bias."""
    return Sizes(
        {"a": (8, 3, 3), "a.bias": (8,), "b": (4, 8, 1), "free": (100,)},
        {"a": 1.0, "a.bias": 1.0, "b": 2.0, "free": 0.0},
        {
            "a": [Axis("a", 0, torch.arange(8)), Axis("a.bias", 0, torch.arange(8)), Axis("b", 1, torch.arange(8))],
            "b": [Axis("b", 0, torch.arange(4)), Axis("free", 0, torch.arange(100))],
        },
    )


def test_what_units_save_by_hand():
    price = sizes()
    assert price.total == 72 + 8 + 64
    assert price.saved("a", [0]) == 9 + 1 + 8
    assert price.saved("b", [0, 3]) == 32
    price.remove("b", [0, 3])
    assert price.saved("a", [0, 1]) == 2 * (9 + 1 + 4)
    assert price.total == 72 + 8 + 32


def test_a_group_along_both_axes_of_a_weight_saves_what_is_cut_of_both():
    price = Sizes({"w": (4, 4)}, {"w": 1.0}, {"g": [Axis("w", 0, torch.arange(4)), Axis("w", 1, torch.arange(4))]})
    assert price.saved("g", [1]) == 16 - 9


def test_units_of_several_rows_and_of_other_groups():
    axis = Axis("w", 1, torch.tensor([-1, 0, 0, 1, 1, -1]))
    assert Sizes({"w": (5, 6)}, {"w": 1.0}, {"g": [axis]}).saved("g", [1]) == 10


def test_at_equal_costs_the_least_units_of_all_groups_go():
    generator = torch.Generator().manual_seed(0)
    pools = {name: Pool(torch.rand(9, generator=generator)) for name in "abc"}
    gone, saved = remove_least(pools, PerUnit(27.0, dict.fromkeys("abc", 1.0)), 11)
    assert saved == 11
    limit = torch.cat([pool.scores for pool in pools.values()]).sort().values[10]
    for name, pool in pools.items():
        assert sorted(gone[name]) == (pool.scores <= limit).nonzero()[:, 0].tolist()


def test_what_costs_more_goes_first_at_equal_scores():
    pools = {"cheap": Pool(torch.ones(4)), "dear": Pool(torch.ones(4)), "nothing": Pool(torch.zeros(4))}
    gone, saved = remove_least(pools, PerUnit(100.0, {"cheap": 1.0, "dear": 10.0, "nothing": 0.0}), 25)
    assert (gone, saved) == ({"dear": [0, 1, 2]}, 30)
    gone, saved = remove_least(pools, PerUnit(100.0, {"cheap": 1.0, "dear": 10.0, "nothing": 0.0}), 90)
    assert saved == 33  # one unit of each stays


def test_costs_are_counted_anew():
    # "a" saves 18 for a score of 18, "b" 16 for 17; once one unit of b is gone, a's save 16 only
    pools = {"a": Pool(torch.tensor([18.0, 18, 99, 99, 99, 99, 99, 99])), "b": Pool(torch.tensor([15.0, 17.2, 99, 99]))}
    gone, saved = remove_least(pools, sizes(), 32)
    assert (gone, saved) == ({"b": [0, 1]}, 32)
    gone, saved = remove_least(pools, sizes(), 33)
    assert (gone, saved) == ({"b": [0, 1], "a": [0]}, 46)


def test_every_group_loses_the_same_share():
    pools = {"a": Pool(torch.arange(8.0)), "b": Pool(torch.arange(4.0).flip(0))}
    gone, saved = remove_evenly(pools, sizes, 72)
    assert gone == {"a": [0, 1, 2], "b": [3, 2]}  # 37.5 and 50 %: of fewer, 72 are not saved
    assert saved == 144 - (5 * 9 + 5 + 2 * 5 * 2)
    gone, saved = remove_evenly(pools, sizes, math.inf)
    assert {name: len(units) for name, units in gone.items()} == {"a": 7, "b": 3}
