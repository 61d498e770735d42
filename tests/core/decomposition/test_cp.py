import math

import pytest
import torch

from core.decomposition.kernels import random, squared
from microtome.core.decomposition.cp import LARGE, cp, cp_parameters
from microtome.core.decomposition.factor import composed, parameters

DAMPED = 1e-6  # of the squared norm: damping keeps the fit from being exact


def planted(outputs: int, inputs: int, rank: int, *size: int) -> torch.Tensor:
    axes = [random(n, rank, seed=7 + k) for k, n in enumerate((outputs, inputs, *size))]
    letters = "oiabc"[: len(axes)]
    return torch.einsum(",".join(f"{letter}r" for letter in letters) + f"->{letters}", *axes)


@pytest.mark.parametrize("size", [(3,), (3, 3), (3, 2, 3)])
def test_a_sum_of_products_is_found_again(size):
    kernel = planted(8, 7, 4, *size)
    chain = cp(kernel, 4, rounds=600, starts=6)
    assert squared(kernel - composed(chain)) < DAMPED * squared(kernel)
    assert [f.depthwise for f in chain] == [False, *[True] * len(size), False]
    assert [f.axes for f in chain] == [(), *((k,) for k in range(len(size))), ()]
    assert parameters(chain) == cp_parameters(tuple(kernel.shape), 4)


def test_a_large_kernel_is_found_in_the_subspaces_that_its_rank_reaches():
    kernel = planted(180, 170, 3, 3, 3)
    assert kernel.numel() > LARGE
    assert squared(kernel - composed(cp(kernel, 3))) < DAMPED * squared(kernel)


def test_components_do_not_grow_against_one_another():
    # x·x·y + x·y·x + y·x·x has rank 3 and is a limit of sums of two products, which grow without bound on the way
    # (de Silva and Lim, SIAM J. Matrix Anal. Appl. 30, 2008): whoever fits two products without damping diverges.
    x, y = torch.eye(2, dtype=torch.float64)
    kernel = sum(torch.einsum("a,b,c->abc", *v) for v in ((x, x, y), (x, y, x), (y, x, x)))
    first, along, last = cp(kernel, 2, rounds=2000)
    norms = first.weight[..., 0].norm(dim=1) * along.weight[:, 0].norm(dim=1) * last.weight[..., 0].norm(dim=0)
    assert float(norms.max()) < 2 * math.sqrt(squared(kernel))  # 3.3 times without damping, and growing


def test_more_rounds_and_more_components_lose_less_and_the_seed_settles_it():
    kernel = random(8, 7, 3, 3)
    errors = [squared(kernel - composed(cp(kernel, rank))) for rank in (2, 6, 12)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(composed(cp(kernel, 6)), composed(cp(kernel, 6)))
    assert squared(kernel - composed(cp(kernel, 6, starts=0, rounds=1))) >= errors[1]
