import pytest
import torch

from microtome.core import importance

W = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
G = torch.tensor([[0.1, 0.3], [-4.0, 9.0]])
H = torch.tensor([[4.0, 0.25], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (importance.magnitude(W), [[1, 2], [0.5, 0]]),
        (importance.square(W), [[1, 4], [0.25, 0]]),
        (importance.layer_adaptive(W), [[1 / 5, 1], [0.25 / 5.25, 0]]),
        (importance.sensitivity(G), [[0.1, 0.3], [4, 9]]),
        (importance.taylor(W, G), [[0.1, 0.6], [2, 0]]),
        (importance.curvature(H), [[4, 0.25], [1, 0]]),
        (importance.relative_magnitude(W, H), [[0.5, 4], [0.5, 0]]),
        (importance.optimal_brain_damage(W, H), [[2, 0.5], [0.125, 0]]),
        (importance.movement(W, G), [[-0.1, 0.6], [2, 0]]),
    ],
)
def test_scores_by_hand(found: torch.Tensor, expected: list[list[float]]):
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_optimal_brain_damage_is_what_a_quadratic_loses():
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    second = torch.tensor([4.0, 0.25, 3.0], dtype=torch.float64)

    def loss(v: torch.Tensor) -> torch.Tensor:
        return 0.5 * (second * (v - weight).square()).sum()  # at its minimum in `weight`

    without = [weight * (torch.arange(3) != k) for k in range(3)]
    expected = torch.stack([loss(v) for v in without])
    assert torch.allclose(importance.optimal_brain_damage(weight, second), expected)


def test_optimal_brain_surgeon_is_half_the_error_of_the_best_refit():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    hessian = inputs.T @ inputs / 50
    scores = importance.optimal_brain_surgeon(weight, torch.linalg.inv(hessian).diagonal()[None])
    for row in range(3):
        for left_out in range(4):
            others = [k for k in range(4) if k != left_out]
            wanted = inputs @ weight[0, row]
            best = torch.linalg.lstsq(inputs[:, others], wanted[:, None]).solution[:, 0]
            error = (inputs[:, others] @ best - wanted).square().mean()
            assert torch.isclose(scores[0, row, left_out], error / 2)


def test_the_largest_weight_of_each_layer_scores_one():
    for seed in range(3):
        weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) * 10**seed
        scores = importance.layer_adaptive(weight)
        assert float(scores.max()) == 1
        assert torch.equal(scores.flatten().argsort(), weight.abs().flatten().argsort())
