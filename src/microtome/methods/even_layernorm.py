"""Layer norms whose features get one common range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.structure.layernorm import layer_norms, scale_norm
from microtome.graph.watching.observe import Observed
from microtome.methods.base import EMPTY, Context, Method, Phase, State

NARROWEST = 0.01  # of the mean range; a feature that hardly moves is not blown up to full width
SMALLEST = 1e-8


@dataclass(frozen=True)
class EvenLayerNorm(Method):
    """Give every feature behind a layer norm the range of the others, so that one grid serves all.

    Source: Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers", ICCV
    2023, section 3.3: the grid that each feature would have by itself (scale and zero point) is turned into the mean
    grid by the norm's own affine, and turned back in the linear layers behind. The network computes the same as before.
    The width of the grids does not matter: zero points are not rounded here.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"even_layernorm"})
    again: ClassVar[bool] = True

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the reparametrised network.

        Raises:
            DataError: there are no calibration images.
        """
        network = network.copy()
        norms = layer_norms(network)
        lows: dict[Node, Tensor] = {}
        highs: dict[Node, Tensor] = {}

        def look(node: Node, value: Tensor) -> None:
            rows = value.detach().flatten(0, -2)
            low, high = rows.amin(0), rows.amax(0)
            lows[node] = torch.minimum(lows[node], low) if node in lows else low
            highs[node] = torch.maximum(highs[node], high) if node in highs else high

        watched = Observed(network, [norm.node for norm in norms], look)
        for batch in context.calibration:
            watched(batch)
        if norms and not lows:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        for norm in norms:
            low, high = lows[norm.node], highs[norm.node]
            span, middle = high - low, (high + low) / 2
            span = span.clamp(min=max(NARROWEST * float(span.mean()), SMALLEST))
            zeros = 0.5 - middle / span  # where zero lies, as a share of each grid
            # the mean grid holds zero, as every grid does that quantizers are given
            scale, zero = span.mean(), zeros.clamp(0, 1).mean()
            # x = (share - zero_j) * span_j must become (share - zero) * scale: equations 7 to 9
            scale_norm(network, norm, span / scale, span * (zeros - zero))
        edit.finish(network.graph_module)
        return self.done(network)
