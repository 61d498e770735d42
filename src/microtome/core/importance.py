"""How much single weights matter: what the loss, or a layer's output, would lose without them.

Each function maps tensors of one shape to scores of that shape; the smallest are the first to go. Only scores that
estimate one and the same loss compare across layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-12  # share of the mean curvature below which a weight counts as flat


def magnitude(weight: Tensor) -> Tensor:
    """Return |w| (Han et al., "Learning both Weights and Connections", NeurIPS 2015, section 3)."""
    return weight.abs()


def square(weight: Tensor) -> Tensor:
    """Return w²: the order of `magnitude`, as a share of the squared norm."""
    return weight.square()


def layer_adaptive(weight: Tensor) -> Tensor:
    """Return w² over the sum of the squares of all weights that are no smaller: comparable across layers.

    Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (LAMP), ICLR 2021, equation 5. The
    largest weight of a tensor scores 1, so that no layer empties.
    """
    squares, order = weight.double().square().flatten().sort()
    rest = squares.flip(0).cumsum(0).flip(0)
    scores = torch.where(rest > 0, squares / rest, torch.zeros_like(rest))
    return torch.empty_like(scores).scatter_(0, order, scores).reshape(weight.shape).to(weight.dtype)


def sensitivity(gradient: Tensor) -> Tensor:
    """Return |∂L/∂w|, first order: how fast the loss changes (Mozer and Smolensky, NeurIPS 1988, "Skeletonization")."""
    return gradient.abs()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return |w ∂L/∂w|, what setting the weight to zero changes to first order.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8 (its root);
    Lee et al., "SNIP", ICLR 2019, equation 5 (not normalised).
    """
    return (weight * gradient).abs()


def curvature(second: Tensor) -> Tensor:
    """Return |∂²L/∂w²|, the Hessian's diagonal."""
    return second.abs()


def relative_magnitude(weight: Tensor, second: Tensor) -> Tensor:
    """Return |w| / √h with h = |∂²L/∂w²|: the weight relative to how much the gradient there varies.

    It keeps weights where the loss is flat, which `optimal_brain_damage` takes first; of no paper, and here to be
    compared with. Flatter than `LEAST` times the mean curvature counts as that.
    """
    h = second.abs()
    return weight.abs() / h.clamp(min=max(float(h.mean()) * LEAST, torch.finfo(h.dtype).tiny)).sqrt()


def optimal_brain_damage(weight: Tensor, second: Tensor) -> Tensor:
    """Return ½ h w² with h = |∂²L/∂w²|, what setting the weight to zero costs to second order at a minimum.

    Source: LeCun et al., "Optimal Brain Damage", NeurIPS 1989, equation 5.
    """
    return 0.5 * second.abs() * weight.square()


def optimal_brain_surgeon(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Return w² / (2 [H⁻¹]), what the weight costs if all the others move to make up for it.

    Source: Hassibi and Stork, "Optimal Brain Surgeon", NeurIPS 1992, equation 5; layer by layer, with H the inputs'
    mean outer product, as in Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, equation 3: the score is
    half of the mean squared change of the layer's output.

    Args:
        weight: (G, R, C), one matrix per group.
        inverse_diagonal: of H⁻¹, (G, C), positive.
    """
    return weight.square() / (2 * inverse_diagonal[:, None])


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return −w ∂L/∂w: positive where training moves the weight away from zero, negative where towards it.

    Source: Sanh et al., "Movement Pruning", NeurIPS 2020, equation 3, whose sum over steps is taken over batches here.
    """
    return -weight * gradient
