"""Gradients of a loss with respect to constants of the graph, streamed over batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.core.distillation import distillation_loss
from microtome.errors import DataError
from microtome.graph.network import Batch, Network, first
from microtome.graph.watching.fisher import root

Objective = Callable[[Tensor, Batch, Any], Tensor]
"""(the network's first output, the batch that it was given, its target or None) → scalar."""
Loss = Callable[[Tensor, Any, Any], Tensor]
LabelLoss = Callable[[Tensor, Any], Tensor]


@dataclass
class GradientSums:
    """What is kept of the gradients of one constant, each in its shape.

    Attributes:
        total: sum over batches.
        size: sum of the absolute values over batches.
        squares: sum of the squares.
        count: batches.
    """

    total: Tensor
    size: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def like(cls, value: Tensor) -> GradientSums:
        """Start with nothing seen."""
        total, size, squares = (torch.zeros_like(value, dtype=torch.float32) for _ in range(3))
        return cls(total, size, squares)

    def add(self, gradient: Tensor) -> None:
        """Look at one batch."""
        self.total += gradient
        self.size += gradient.abs()
        self.squares.addcmul_(gradient, gradient)
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """Mean gradient."""
        return self.total / max(self.count, 1)

    @property
    def mean_size(self) -> Tensor:
        """Mean magnitude."""
        return self.size / max(self.count, 1)

    @property
    def mean_square(self) -> Tensor:
        """Mean square: the diagonal of the empirical Fisher matrix, an estimate of the Hessian's at a minimum."""
        return self.squares / max(self.count, 1)


def gradients(
    network: Network, names: Collection[str], batches: Iterable[Any], objective: Objective
) -> Iterator[dict[str, Tensor]]:
    """Yield for each batch of inputs, or of (inputs, target), the gradients with respect to constants.

    Args:
        network: it is not changed.
        names: of constants.
        batches: to look at, each once.
        objective: what is differentiated.

    Raises:
        DataError: there are no batches, or a gradient is NaN or infinite.
    """
    network = network.copy()
    for name, parameter in network.graph_module.named_parameters():
        parameter.requires_grad_(name in names)
    leaves = {name: network.graph_module.get_parameter(name) for name in names}
    count = 0
    for batch in batches:
        x, target = batch if isinstance(batch, tuple | list) else (batch, None)
        with torch.enable_grad():
            output = first(network.graph_module(*network.arguments(x)))
            value = objective(output, x, None if target is None else target.to(network.device))
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        if not math.isfinite(float(value.detach())) or any(g is not None and not g.isfinite().all() for g in found):
            raise DataError("a gradient is NaN or infinite.", "Check the pre-processing and the weights.")
        pairs = zip(leaves.items(), found, strict=True)
        yield {n: torch.zeros_like(leaf, requires_grad=False) if g is None else g.detach() for (n, leaf), g in pairs}
        count += 1
    if not count:
        raise DataError("there are no images to take gradients on.", "Give at least one training case.")


def gradient_sums(
    network: Network, names: Collection[str], batches: Iterable[Any], objective: Objective
) -> dict[str, GradientSums]:
    """Return what `gradients` were over all batches.

    Memory holds three tensors of each constant's size, whatever the number of batches.
    """
    sums = {name: GradientSums.like(network.tensor(name)) for name in names}
    for found in gradients(network, names, batches, objective):
        for name, gradient in found.items():
            sums[name].add(gradient)
    return sums


def drawn(*, sigmoid: bool, seed: int) -> Objective:
    """Return an objective whose squared gradients are on average the diagonal of the Fisher matrix, without labels.

    That is the Hessian of the divergence from what the network says now, see `graph.watching.fisher`. With labels drawn
    from the network's own probabilities instead of random signs the mean would be the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def objective(output: Tensor, _: Batch, __: Any) -> Tensor:
        output = output.float()
        signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
        vector = root(output.detach(), signs, sigmoid=sigmoid) / math.sqrt(output.numel() / output.shape[1])
        return (output * vector).sum()

    return objective


def taught(loss: Loss | None, teacher: Network, *, sigmoid: bool) -> Objective:
    """Return a training loss, or the distance from the teacher where there is none, as an objective."""

    def objective(output: Tensor, x: Batch, target: Any) -> Tensor:
        with torch.no_grad():
            wanted = teacher(x)
        if loss is None:
            return distillation_loss(output, wanted, sigmoid=sigmoid)
        return loss(output, wanted, target)

    return objective


def some(batches: Iterable[Any] | None, most: int) -> Iterator[Any]:
    """Yield at most so many batches; none of None."""
    return itertools.islice(iter(() if batches is None else batches), most)


def labelled(batches: Iterable[Any] | None) -> bool:
    """Whether batches are (inputs, target)."""
    return any(isinstance(batch, tuple | list) for batch in some(batches, 1))


def chosen_objective(
    *,
    training: Iterable[Any] | None,
    calibration: Iterable[Batch],
    label_loss: LabelLoss | None,
    sigmoid: bool,
    seed: int,
) -> tuple[Objective, Iterable[Any]]:
    """Return what importance goes by, and on which batches: the loss on labels where there are any, else `drawn`."""
    if training is not None and label_loss is not None and labelled(training):
        return lambda output, _, target: label_loss(output.float(), target), training
    return drawn(sigmoid=sigmoid, seed=seed), calibration
