"""In which order the values of feature maps lie: convolutions are trained faster with channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from microtome.graph.operators import aten

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(module: GraphModule) -> None:
    """Let a graph compute with channels last, in place: what its kernels of convolutions then give follows them.

    Views of values that are not in the usual order become copies. Call `module.recompile()` afterwards.
    """
    for node in module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    for value in module.parameters():
        if value.ndim in FORMATS:
            value.data = value.data.contiguous(memory_format=FORMATS[value.ndim])


def usual(parameter: nn.Parameter) -> Tensor:
    """Return a weight in the usual order, detached."""
    return parameter.detach().contiguous()
