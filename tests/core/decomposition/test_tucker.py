import pytest
import torch

from core.decomposition.kernels import EXACT, random, squared
from microtome.core.decomposition.factor import composed, parameters
from microtome.core.decomposition.tucker import tucker, tucker_energies, tucker_parameters


def planted(outputs: int, inputs: int, ranks: tuple[int, int], *size: int) -> torch.Tensor:
    return torch.einsum(
        "ap,pq...,qb->ab...", random(outputs, ranks[0]), random(*ranks, *size), random(ranks[1], inputs)
    )


@pytest.mark.parametrize("size", [(3,), (3, 3), (3, 2, 3)])
def test_a_kernel_made_from_factors_is_found_again(size):
    kernel = planted(7, 6, (3, 2), *size)
    chain = tucker(kernel, (3, 2))
    assert [f.name for f in chain] == ["first", "core", "last"]
    assert [tuple(f.weight.shape[:2]) for f in chain] == [(2, 6), (3, 2), (7, 3)]
    assert torch.allclose(composed(chain), kernel, atol=EXACT)
    assert parameters(chain) == tucker_parameters(tuple(kernel.shape), (3, 2))
    assert [int((e > EXACT).sum()) for e in tucker_energies(kernel)] == [3, 2]


def test_a_side_of_full_rank_needs_no_layer():
    kernel = random(5, 4, 3, 3)
    for ranks, names in (((5, 2), ["first", "core"]), ((2, 4), ["core", "last"]), ((5, 4), ["core"])):
        chain = tucker(kernel, ranks)
        assert [f.name for f in chain] == names
        assert parameters(chain) == tucker_parameters((5, 4, 3, 3), ranks)
    assert torch.allclose(composed(tucker(kernel, (5, 4))), kernel, atol=EXACT)


def test_rounds_lose_no_more_than_the_start_and_less_than_both_tails():
    for seed in range(5):
        kernel = random(8, 9, 3, 3, seed=seed)
        start, best = (squared(kernel - composed(tucker(kernel, (3, 3), rounds=n))) for n in (0, 10))
        tails = sum(float(e[3:].sum()) for e in tucker_energies(kernel))
        assert best < start * (1 - 1e-3)  # on noise the start is never the best
        assert best <= tails + EXACT


def test_no_turn_of_a_subspace_makes_the_best_better():
    # At a minimum the gradient by rotations vanishes: any small turn loses, to first order, nothing.
    kernel = random(6, 5, 3, 3)
    chain = tucker(kernel, (2, 2), rounds=200)
    last, first = chain[2].weight[..., 0, 0], chain[0].weight[..., 0, 0]
    best = squared(kernel - composed(chain))
    for seed in range(4):
        turned = torch.linalg.qr(last + 1e-3 * random(6, 2, seed=seed))[0]
        core = torch.einsum("oi...,or,si->rs...", kernel, turned, first)
        assert squared(kernel) - squared(core) >= best - EXACT
