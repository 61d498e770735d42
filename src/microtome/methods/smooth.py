"""Balancing of activations and weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.layernorm import LayerNorm, layer_norms, scale_layer_norm
from microtome.graph.network import Network
from microtome.graph.observe import Observed
from microtome.graph.scaling import input_ranges, pairs, rescale
from microtome.methods.base import Batches

SMALLEST = 1e-5


@dataclass(frozen=True)
class Smooth:
    """Take the outliers of single channels out of what layers read, and put them into the layers' weights.

    Source: Xiao et al., "SmoothQuant", ICML 2023, equation 4: scale = max|x|^alpha / max|w|^(1 - alpha) per channel.
    The scale is taken from what makes the value: a layer norm's affine, or the layer before (through ReLU and its
    kin). Where neither can take it, the value stays as it is. The network computes the same as before.

    Attributes:
        alpha: how much goes over to the weights, 0 to 1; 0.5 shares evenly.
    """

    alpha: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    refuses: ClassVar[frozenset[str]] = frozenset({"quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"smoothed"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the balanced network.

        Raises:
            OptionError: `alpha` is no share.
            DataError: there are no calibration images.
        """
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"alpha is a share, 0 to 1, not {self.alpha}.")
        network = network.copy()
        chain, norms = pairs(network), layer_norms(network)
        largest = _largest(network, [pair.node for pair in chain], [norm.node for norm in norms], batches)
        for pair in chain:
            rescale(network, pair, self._scale(largest[pair.node], input_ranges(network, pair)))
        for norm in norms:
            scale_layer_norm(network, norm, self._scale(largest[norm.node], _read(network, norm)))
        edit.finish(network.graph_module)
        return replace(network, state=network.state | self.leaves)

    def _scale(self, activation: Tensor, weight: Tensor) -> Tensor:
        """Return what to divide the activation's channels by."""
        scale = activation.pow(self.alpha) / weight.clamp(min=SMALLEST).pow(1 - self.alpha)
        return torch.where((activation < SMALLEST) | (weight < SMALLEST), torch.ones_like(scale), scale)


def _largest(network: Network, layers: list[Node], norms: list[Node], batches: Batches) -> dict[Node, Tensor]:
    """Return the largest magnitude of each channel of each value; shape (C,). Streams."""
    found: dict[Node, Tensor] = {}
    last = {*norms, *(node for node in layers if node.target is torch.ops.aten.linear.default)}

    def look(node: Node, value: Tensor) -> None:
        rows = value.detach().movedim(-1 if node in last else 1, 0).flatten(1).abs().amax(1)
        found[node] = torch.maximum(found[node], rows) if node in found else rows

    watched = Observed(network, [*layers, *norms], look)
    for batch in batches:
        watched(batch.to(network.device))
    if (layers or norms) and not found:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    return found


def _read(network: Network, norm: LayerNorm) -> Tensor:
    """Return the largest magnitude of the weights that read each feature of a layer norm; shape (C,)."""
    return torch.stack([network.tensor(reader).abs().amax(0) for reader in norm.weights]).amax(0)
