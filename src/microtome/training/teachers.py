"""What a student imitates."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.graph.learning.memory import channels_last
from microtome.graph.network import Batch, Network
from microtome.graph.quantizers import quantizers


class Teacher:
    """A network that answers, and does not learn: (x) → its output, or a tuple of several."""

    def __init__(self, network: Network) -> None:
        """Copy the network; in float it computes with channels last, as students do."""
        self.network = network.copy()
        if not list(quantizers(self.network)):
            channels_last(self.network.graph_module)
            self.network.graph_module.recompile()

    @torch.no_grad()
    def __call__(self, x: Batch) -> Tensor | tuple[Tensor, ...]:
        """Answer."""
        answer: Tensor | tuple[Tensor, ...] = self.network.graph_module(*self.network.arguments(x))
        return answer
