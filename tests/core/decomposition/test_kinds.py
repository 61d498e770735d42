import pytest
import torch

from core.decomposition.kernels import random
from microtome.core.decomposition.factor import composed, parameters
from microtome.core.decomposition.kinds import (
    KINDS,
    kind_for,
    lost,
    ranks_of_energy,
    ranks_of_noise,
    ranks_within,
)
from microtome.core.decomposition.ranks import rank_of_energy, rounded_rank

every_kind = pytest.mark.parametrize("name", KINDS)
LOW = {"svd": (2,), "spatial": (3,), "tucker": (3, 2), "cp": (3,), "tt": (2, 3, 2)}


def falling(*shape: int) -> torch.Tensor:
    """A kernel whose channels matter less and less."""
    kernel = random(*shape)
    for axis in (0, 1):
        size = [-1 if a == axis else 1 for a in range(kernel.ndim)]
        kernel = kernel * (0.6 ** torch.arange(shape[axis], dtype=torch.float64)).reshape(size)
    return kernel


def test_ranks_by_hand():
    energies = torch.tensor([6.0, 3.0, 1.0])
    assert [rank_of_energy(energies, share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_of_energy(torch.zeros(3), 0.9) == 1
    assert [rounded_rank(r, 8, 20) for r in (0, 1, 8, 9, 17)] == [8, 8, 8, 16, 20]


@every_kind
def test_weights_are_counted_as_they_come(name: str):
    kernel = random(9, 8, 3, 3)
    chain = KINDS[name].factors(kernel, LOW[name])
    assert parameters(chain) == KINDS[name].parameters(tuple(kernel.shape), LOW[name])
    assert composed(chain).shape == kernel.shape


@every_kind
@pytest.mark.parametrize("energy", [0.8, 0.95, 0.99])
def test_the_energy_asked_for_is_kept(name: str, energy: float):
    kernel, kind = falling(9, 8, 3, 3), KINDS[name]
    ranks = ranks_of_energy(kind, kernel, energy)
    assert lost(kernel, kind.factors(kernel, ranks)) <= 1 - energy
    fewer = ranks_of_energy(kind, kernel, energy - 0.6)
    assert kind.parameters((9, 8, 3, 3), fewer) < kind.parameters((9, 8, 3, 3), ranks)


@every_kind
@pytest.mark.parametrize("step", [1, 2])
def test_ranks_within_a_number_of_weights_use_it(name: str, step: int):
    kernel, kind = falling(10, 8, 3, 3), KINDS[name]
    spectra, errors = None if kind.energies is None else kind.energies(kernel), []
    for most in (200, 300, 600):
        ranks = ranks_within(kind, (10, 8, 3, 3), spectra, most, step)
        assert ranks is not None
        assert most / 3 < kind.parameters((10, 8, 3, 3), ranks) <= most
        assert all(rank % step == 0 for rank in ranks)
        errors.append(lost(kernel, kind.factors(kernel, ranks)))
    assert errors == sorted(errors, reverse=True)
    assert ranks_within(kind, (10, 8, 3, 3), spectra, 15, step) is None


@every_kind
def test_noise_is_told_from_what_stands_out(name: str):
    kernel = random(24, 20, 3, 3) * 0.02
    kernel = kernel + composed(KINDS["tucker"].factors(random(24, 20, 3, 3, seed=1), (3, 3)))
    ranks = ranks_of_noise(KINDS[name], kernel)
    expected = {"svd": (3,), "tucker": (3, 3), "cp": (3,), "spatial": (9,), "tt": (3, 9, 3)}
    assert ranks == expected[name]


def test_kernels_without_long_axes_are_split_in_two():
    assert {kind_for(name, (4, 3)).name for name in KINDS} == {"svd"}
    assert {kind_for(name, (4, 3, 1, 1)).name for name in KINDS} == {"svd"}
    assert {name: kind_for(name, (4, 3, 1, 5)).name for name in KINDS} == {
        **{name: name for name in KINDS},
        "spatial": "svd",
    }
