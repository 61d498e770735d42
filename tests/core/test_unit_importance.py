import pytest
import torch

from microtome.core import unit_importance

ROWS = torch.tensor([[3.0, -4.0], [0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (unit_importance.l1(ROWS), [7, 1, 0]),
        (unit_importance.l2(ROWS), [5, 1, 0]),
        (unit_importance.geometric_median(ROWS), [34**0.5 + 5, 34**0.5 + 1, 6]),
        (unit_importance.first_order(torch.tensor([1.0, 2.0])), [1, 2]),
        (unit_importance.second_order(torch.tensor([1.0, 2.0])), [0.5, 1]),
        (unit_importance.activity(torch.tensor([[0.1, -3, 2, 0], [0, 0, 0, 1]]), 0.5), [0.5, 0.25]),
        (unit_importance.normalised(torch.tensor([1.0, 2.0, 3.0])), [0.5, 1, 1.5]),
        (unit_importance.normalised(torch.zeros(2)), [0, 0]),
    ],
)
def test_scores_by_hand(found: torch.Tensor, expected: list[float]):
    assert torch.allclose(found.float(), torch.tensor(expected, dtype=torch.float32))


def test_the_rank_of_maps():
    generator = torch.Generator().manual_seed(0)
    maps = torch.stack(
        [
            torch.stack(
                [torch.randn(6, r, generator=generator) @ torch.randn(r, 5, generator=generator) for r in ranks]
            )
            for ranks in ((1, 3, 5), (2, 3, 4))
        ]
    )
    maps = torch.cat([maps, torch.zeros(2, 1, 6, 5)], 1)
    judged = torch.linalg.matrix_rank(maps.double(), rtol=unit_importance.RANK).double().mean(0)
    assert unit_importance.map_rank(maps).tolist() == judged.tolist() == [1.5, 3, 4.5, 0]


def test_units_that_are_alike_are_the_first_to_go_by_the_geometric_median():
    rows = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    rows[5] = rows.mean(0)
    assert int(unit_importance.geometric_median(rows).argmin()) == 5
