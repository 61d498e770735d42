import pytest

from core.decomposition.kernels import random
from microtome.core.decomposition.tensors import energies
from microtome.core.decomposition.vbmf import _tau, vbmf_rank


def rank_of(matrix) -> int:
    return vbmf_rank(energies(matrix), *matrix.shape)


def test_the_constant_of_a_square_matrix_is_the_published_one():
    assert _tau(1.0) == pytest.approx(2.5129, abs=1e-4)  # Nakajima et al., section 3.3
    assert _tau(0.25) / 0.5 == pytest.approx(2.5129, rel=0.02)


@pytest.mark.parametrize("shape", [(60, 60), (40, 300), (300, 40)])
@pytest.mark.parametrize("noise", [1e-3, 1.0, 50.0])
def test_a_planted_rank_is_found_whatever_the_scale(shape, noise):
    rows, columns = shape
    signal = random(rows, 5) @ random(5, columns, seed=1) * 4 / (rows * columns) ** 0.25 * max(shape) ** 0.5
    assert rank_of(noise * (signal + random(rows, columns, seed=2))) == 5


def test_noise_alone_has_no_rank_and_what_drowns_in_it_is_not_counted():
    noise = random(80, 200)
    assert rank_of(noise) == 0
    weak = random(80, 1) @ random(1, 200, seed=1) * 0.05
    strong = random(80, 1, seed=3) @ random(1, 200, seed=4)
    assert rank_of(noise + weak) == 0
    assert rank_of(noise + weak + strong) == 1


def test_nothing_has_no_rank():
    assert rank_of(random(4, 6) * 0) == 0
