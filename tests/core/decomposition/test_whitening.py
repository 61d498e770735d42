import pytest
import torch

from core.decomposition.kernels import EXACT, random, squared
from microtome.core.decomposition.factor import composed
from microtome.core.decomposition.kinds import KINDS
from microtome.core.decomposition.matrices import split
from microtome.core.decomposition.whitening import Whitening

RANKS = {"svd": (5,), "spatial": (12,), "tucker": (5, 4), "cp": (60,), "tt": (4, 10, 5)}
CP = 1e-6  # damped


def covariance(size: int, seed: int) -> torch.Tensor:
    root = random(size, size, seed=seed)
    return root @ root.T / size


def test_the_norm_of_a_whitened_kernel_is_the_variance_of_its_output():
    kernel, parts = random(5, 4, 3, 2), [covariance(4, 1), covariance(3, 2), covariance(2, 3)]
    whole = torch.kron(torch.kron(parts[0], parts[1]), parts[2])
    rows = kernel.flatten(1)
    assert squared(Whitening.of(parts).whitened(kernel)) == pytest.approx(float((rows @ whole @ rows.T).trace()))


@pytest.mark.parametrize("kind", KINDS)
def test_factors_of_the_whitened_kernel_become_factors_of_the_kernel(kind):
    kernel = random(5, 4, 3, 2)
    whitening = Whitening.of([covariance(4, 1), covariance(3, 2), covariance(2, 3)])
    chain = whitening.restored(KINDS[kind].factors(whitening.whitened(kernel), RANKS[kind]))
    difference = squared(whitening.whitened(composed(chain) - kernel)) / squared(whitening.whitened(kernel))
    assert difference < (CP if kind == "cp" else EXACT)


def test_a_layer_loses_least_for_the_inputs_that_there_are():
    inputs = random(500, 12) @ random(12, 12, seed=1) * torch.logspace(0, -2, 12, dtype=torch.float64)
    inputs = inputs @ random(12, 12, seed=2)
    kernel = random(8, 12, seed=3)
    whitening = Whitening.of([inputs.T @ inputs / len(inputs)])
    aware = composed(whitening.restored(split(whitening.whitened(kernel), 3)))
    blind = composed(split(kernel, 3))
    wanted = inputs @ kernel.T
    # the best outputs of rank 3 at all are those of the outputs' own decomposition (Eckart and Young)
    best = float(torch.linalg.svdvals(wanted)[3:].square().sum())
    assert squared(wanted - inputs @ aware.T) == pytest.approx(best, rel=0.02)
    assert squared(wanted - inputs @ blind.T) > 2 * best


def test_inputs_that_never_vary_keep_their_weights():
    whitening = Whitening.of([torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))])
    kernel = random(4, 3)
    assert torch.allclose(composed(whitening.restored(split(whitening.whitened(kernel), 3))), kernel, atol=1e-6)
    still = Whitening.of([torch.zeros(3, 3, dtype=torch.float64)])
    assert torch.equal(still.whitened(kernel), kernel)
