"""Kernels for tests of decompositions."""

import torch
from torch import Tensor

EXACT = 1e-9  # float64, some hundred terms


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(tensor: Tensor) -> float:
    return float(tensor.square().sum())
