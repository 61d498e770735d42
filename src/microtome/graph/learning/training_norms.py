"""Batch norms in training: batches normalise, and the running statistics follow them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from microtome.graph.operators import constant_source, kind

PREFIX = "norm_modules"


class TrainedNorm(nn.Module):
    """Stands where a batch norm stood: (x, scale, shift, running mean, running variance) → normalised x.

    In training mode the batch's own statistics normalise, and the running ones move towards them (Ioffe and Szegedy,
    ICML 2015, algorithm 1). A single image is no batch: it is normalised with the running statistics, which move too,
    and the gradient flows through the image's own (Ioffe, "Batch Renormalization", arXiv:1702.03275, algorithm 1,
    without limits). One value per channel has no variance: there the running statistics stay.
    """

    def __init__(self, momentum: float, eps: float) -> None:
        """Take over the operator's settings."""
        super().__init__()
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise; same shape. In training mode `mean` and `variance` are updated in place."""
        values = x.numel() // max(x.shape[1], 1)
        if not self.training or values < 2:
            return functional.batch_norm(x, mean, variance, scale, shift, False, self.momentum, self.eps)
        if len(x) > 1:
            return functional.batch_norm(x, mean, variance, scale, shift, True, self.momentum, self.eps)
        aside = (1, -1, *[1] * (x.ndim - 2))
        with torch.no_grad():
            own_variance, own_mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
            ratio = torch.sqrt((own_variance + self.eps) / (variance + self.eps))
            offset = (own_mean - mean) * torch.rsqrt(variance + self.eps)
            mean.lerp_(own_mean, self.momentum)
            variance.lerp_(own_variance * values / (values - 1), self.momentum)
        alone = functional.batch_norm(x, None, None, None, None, True, 0.0, self.eps)
        normal = alone * ratio.reshape(aside) + offset.reshape(aside)
        normal = normal if scale is None else normal * scale.reshape(aside)
        return normal if shift is None else normal + shift.reshape(aside)


def has_batch_norms(module: GraphModule) -> bool:
    """Whether there are any with running statistics of their own."""
    return any(_trainable(node) for node in module.graph.nodes)


def train_norms(module: GraphModule) -> tuple[str, ...]:
    """Put modules in place of a graph's batch norms, in place, and return the names of their running statistics.

    Call `module.recompile()` afterwards.
    """
    statistics: dict[str, None] = {}
    for position, node in enumerate([node for node in module.graph.nodes if _trainable(node)]):
        name = f"{PREFIX}_{position}"
        module.add_module(name, TrainedNorm(float(node.args[6]), float(node.args[7])))
        with module.graph.inserting_after(node):
            made = module.graph.call_module(name, tuple(node.args[:5]))
        made.meta.update(node.meta)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
        sources = (constant_source(argument) for argument in made.args[3:5])
        statistics.update(dict.fromkeys(str(source.target) for source in sources if source is not None))
    return tuple(statistics)


def _trainable(node: torch.fx.Node) -> bool:
    """Whether a node is a batch norm in evaluation mode whose statistics are constants."""
    return (
        node.op == "call_function"
        and kind(node) == "batch_norm"
        and node.args[5] is False
        and all(constant_source(argument) is not None for argument in node.args[3:5])
    )
