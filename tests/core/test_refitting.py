import pytest
import torch

from microtome.core.refitting import damped, inverse_diagonal, refit

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(200, 6, generator=GENERATOR, dtype=torch.float64) @ torch.randn(
    6, 6, generator=GENERATOR, dtype=torch.float64
)
HESSIAN = (INPUTS.T @ INPUTS)[None]
WEIGHT = torch.randn(1, 4, 6, generator=GENERATOR, dtype=torch.float64)
MASK = torch.rand(1, 4, 6, generator=GENERATOR) > 0.4
CLOSE = 1e-5  # conjugate gradients end at a residual of 1e-6 of the first


def test_the_refit_is_the_least_squares_solution():
    found = refit(WEIGHT, MASK, HESSIAN)
    assert not bool(found[~MASK].any())
    for row in range(4):
        kept = MASK[0, row]
        best = torch.linalg.lstsq(INPUTS[:, kept], (INPUTS @ WEIGHT[0, row])[:, None]).solution[:, 0]
        assert torch.allclose(found[0, row, kept], best, atol=CLOSE)


def test_one_weight_less_is_the_optimal_brain_surgeons_update():
    mask = torch.ones(1, 1, 6, dtype=torch.bool)
    mask[0, 0, 2] = False
    inverse = torch.linalg.inv(HESSIAN[0])
    weight = WEIGHT[:, :1]
    expected = weight[0, 0] - weight[0, 0, 2] / inverse[2, 2] * inverse[:, 2]
    assert torch.allclose(refit(weight, mask, HESSIAN)[0, 0], expected, atol=CLOSE)


def test_each_step_lowers_the_error():
    def error(found: torch.Tensor) -> float:
        return float(((found - WEIGHT) @ INPUTS.T).square().sum())

    errors = [error(refit(WEIGHT, MASK, HESSIAN, steps)) for steps in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(error(WEIGHT * MASK))
    assert errors[-1] < 0.9 * errors[0]


def test_what_is_kept_whole_stays():
    whole = torch.ones_like(MASK)
    assert torch.equal(refit(WEIGHT, whole, HESSIAN), WEIGHT)
    assert not bool(refit(WEIGHT, ~whole, HESSIAN).any())


def test_damping_makes_inputs_that_are_always_zero_harmless():
    hessian = HESSIAN.clone()
    hessian[:, 3], hessian[:, :, 3] = 0, 0
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_diagonal(hessian)
    assert bool((inverse_diagonal(damped(hessian, 0.01)) > 0).all())
    assert bool((inverse_diagonal(damped(torch.zeros(2, 3, 3), 0.01)) == 1).all())
    found = refit(WEIGHT, MASK, damped(hessian, 0.01))
    assert bool(found.isfinite().all())
    assert torch.equal(found[..., 3], (WEIGHT * MASK)[..., 3])
    with pytest.raises(ValueError, match="NaN"):
        damped(hessian * torch.nan, 0.01)
