import numpy as np
import pytest
import torch

from core.decomposition.kernels import EXACT, random, squared
from microtome.core.decomposition.factor import composed
from microtome.core.decomposition.matrices import split, split_energies, split_sides


@pytest.mark.parametrize(
    ("shape", "front", "sides"),
    [
        ((5, 7), None, (5, 7)),
        ((5, 4, 3, 3), None, (5, 36)),
        ((5, 4, 3, 2), (0,), (10, 12)),
        ((5, 4, 3, 2, 2), (1,), (30, 8)),
    ],
)
def test_what_is_lost_is_the_tail_of_the_spectrum(shape, front, sides):
    kernel = random(*shape)
    assert split_sides(shape, front) == sides
    energies = split_energies(kernel, front)
    assert len(energies) == min(sides)
    for rank in (1, 3):
        chain = split(kernel, rank, front)
        assert [f.outputs for f in chain] == [rank, shape[0]]
        assert squared(kernel - composed(chain)) == pytest.approx(float(energies[rank:].sum()), abs=EXACT)
    assert torch.allclose(composed(split(kernel, min(sides), front)), kernel, atol=EXACT)


def test_a_matrix_is_cut_as_numpy_does():
    kernel = random(6, 9)
    u, s, vh = np.linalg.svd(kernel.numpy())
    expected = u[:, :2] * s[:2] @ vh[:2]
    assert np.allclose(composed(split(kernel, 2)).numpy(), expected)
    first, last = split(kernel, 2)
    assert squared(first.weight) == pytest.approx(squared(last.weight))


def test_the_spatial_form_walks_one_axis_and_then_the_others():
    first, last = split(random(5, 4, 3, 2, 2), 3, (0,))
    assert (first.axes, last.axes) == ((0,), (1, 2))
    assert (tuple(first.weight.shape), tuple(last.weight.shape)) == ((3, 4, 3, 1, 1), (5, 3, 1, 2, 2))
