"""In which order the values of feature maps lie: convolutions are trained faster with channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from microtome.graph.operators import aten, kind
from microtome.graph.watching.eager import depends_on_layout

CHANNELS_FIRST = frozenset({"group_norm", "instance_norm"})
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(module: GraphModule) -> None:
    """Let a graph compute with channels last, in place: what its kernels of convolutions then give follows them.

    Views of values that are not in the usual order become copies. Graphs stay as they are whose results depend on the
    order, or that have norms of single images: torch copies for instance norms, and its kernel for group norms
    subtracts squares. Call `module.recompile()` afterwards.
    """
    if depends_on_layout(module.graph) or any(kind(node) in CHANNELS_FIRST for node in module.graph.nodes):
        return
    for node in module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    for value in module.parameters():
        if value.ndim in FORMATS:
            value.data = value.data.contiguous(memory_format=FORMATS[value.ndim])


def usual(parameter: nn.Parameter) -> Tensor:
    """Return a weight in the usual order, detached."""
    return parameter.detach().contiguous()
