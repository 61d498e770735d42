import itertools

import pytest
import torch

from microtome.core.channel_grouping import Grouping, grouping


def planted(groups: int, size: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return blocks of energy with their rows and columns shuffled, and the shuffles."""
    generator = torch.Generator().manual_seed(groups)
    inside = torch.block_diag(*[torch.rand((2 * size, size), generator=generator) + 0.5 for _ in range(groups)])
    energy = inside + noise * torch.rand(inside.shape, generator=generator)
    rows, columns = (torch.randperm(n, generator=generator) for n in inside.shape)
    return energy[rows][:, columns], rows, columns


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_blocks_are_found_again(groups: int, noise: float):
    energy, rows, columns = planted(groups, 8, noise)
    found = grouping(energy, groups)
    assert sorted(found.outputs.tolist()) == list(range(16 * groups))
    assert sorted(found.inputs.tolist()) == list(range(8 * groups))
    for part, chunk in zip(found.outputs.chunk(groups), found.inputs.chunk(groups), strict=True):
        block = set((rows[part] // 16).tolist())
        assert len(block) == 1
        assert set((columns[chunk] // 8).tolist()) == block
    kept = float(energy[found.mask(groups)].sum() / energy.sum())
    assert abs(found.kept - kept) < 1e-6
    assert (found.kept > 1 - 1e-12) == (noise == 0)


def test_of_a_small_matrix_no_grouping_is_better():
    energy = torch.rand((4, 6), generator=torch.Generator().manual_seed(5))
    best = 0.0
    for rows in itertools.combinations(range(4), 2):
        for columns in itertools.combinations(range(6), 3):
            one, other = torch.zeros(4, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)
            one[list(rows)], other[list(columns)] = True, True
            best = max(best, float(energy[one[:, None] == other].sum() / energy.sum()))
    assert abs(grouping(energy, 2, restarts=32).kept - best) < 1e-6


def test_in_the_end_no_exchange_between_groups_gains():
    energy = torch.rand((48, 32), generator=torch.Generator().manual_seed(2)) ** 4
    found = grouping(energy, 2, restarts=0)
    inside = energy[found.mask(2)].sum()
    for count, order in ((48, found.outputs), (32, found.inputs)):
        for one, other in itertools.product(range(count // 2), range(count // 2, count)):
            changed = order.clone()
            changed[[one, other]] = order[[other, one]]
            sides = {"outputs": found.outputs, "inputs": found.inputs, "outputs" if count == 48 else "inputs": changed}
            assert energy[Grouping(**sides, kept=0.0).mask(2)].sum() <= inside + 1e-5


@pytest.mark.parametrize("side", ["fixed_inputs", "fixed_outputs"])
def test_one_side_can_keep_its_order(side: str):
    energy, _, _ = planted(2, 6, 0.3)
    found = grouping(energy, 2, **{side: True})  # type: ignore[arg-type]
    kept = found.inputs if side == "fixed_inputs" else found.outputs
    assert torch.equal(kept, torch.arange(len(kept)))
    assert grouping(energy, 2, fixed_inputs=True, fixed_outputs=True).kept <= found.kept <= grouping(energy, 2).kept


def test_the_mask_is_what_lies_inside():
    found = grouping(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 2)
    assert found.mask(2).tolist() == [[False, True], [True, False]]
    assert found.kept == 1.0


def test_no_energy_is_kept_whole():
    assert grouping(torch.zeros(4, 4), 2).kept == 1.0
