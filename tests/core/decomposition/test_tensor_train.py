import pytest
import torch

from core.decomposition.kernels import EXACT, random, squared
from microtome.core.decomposition.factor import composed, parameters
from microtome.core.decomposition.tensor_train import tensor_train, train_energies, train_parameters


def test_a_train_is_found_again():
    cores = (
        random(6, 2),
        random(2, 3, 3, seed=1),
        random(3, 2, 4, seed=2),
        random(4, 3, 2, seed=3),
        random(2, 7, seed=4),
    )
    kernel = torch.einsum("ip,paq,qbr,rcs,so->oiabc", *cores)
    chain = tensor_train(kernel, (2, 3, 4, 2))
    assert [f.name for f in chain] == ["first", "axis1", "axis2", "axis3", "last"]
    assert [f.axes for f in chain] == [(), (0,), (1,), (2,), ()]
    assert torch.allclose(composed(chain), kernel, atol=EXACT)
    assert parameters(chain) == train_parameters(tuple(kernel.shape), (2, 3, 4, 2))
    assert [int((e > EXACT).sum()) for e in train_energies(kernel)] == [2, 3, 4, 2]


def test_full_ranks_are_exact_and_fewer_lose_no_more_than_all_tails():
    kernel = random(5, 4, 3, 2)
    full = tuple(len(e) for e in train_energies(kernel))
    assert full == (4, 10, 5)
    assert torch.allclose(composed(tensor_train(kernel, full)), kernel, atol=EXACT)
    tails = sum(float(e[2:].sum()) for e in train_energies(kernel))
    one = float(train_energies(kernel)[1][2:].sum())
    assert one <= squared(kernel - composed(tensor_train(kernel, (2, 2, 2)))) <= tails


def test_an_axis_of_size_one_is_walked_with_the_first_that_is_longer():
    chain = tensor_train(random(4, 3, 1, 3), (2, 2))
    assert [f.axes for f in chain] == [(), (1, 0), ()]
    assert tuple(chain[1].weight.shape) == (2, 2, 1, 3)


def test_one_bond_is_the_best_low_rank_matrix():
    kernel = random(5, 4, 3)
    chain = tensor_train(kernel, (2, 5))
    assert squared(kernel - composed(chain)) == pytest.approx(float(train_energies(kernel)[0][2:].sum()))
