"""Layers whose weights make up for the weights, or the inputs, that go."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.core.columns import from_rows, rows
from microtome.core.refitting import damped, refit
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.watching.grams import Gram


def refit_layers(network: Network, gram: Gram, mask: Tensor, damping: float) -> None:
    """Refit a weight in place to zeros outside of a mask: its layers' outputs change least, in least squares.

    Biases take up the change of the mean; a layer without one gets it.

    Args:
        network: a copy that may be edited.
        gram: what the layers see, centred.
        mask: of the weight's shape, True where it is kept.
        damping: share of the second moments' mean diagonal that is added to it.
    """
    before = network.tensor(gram.name)
    weight, kept = rows(before, gram.geometry), rows(mask, gram.geometry)
    parts = [
        refit(weight[..., part], kept[..., part], damped(matrix, damping))
        for part, matrix in zip(gram.parts, gram.matrices, strict=True)
    ]
    fitted = torch.cat(parts, 2).to(weight.dtype)
    for layer, mean in zip(gram.layers, gram.means, strict=True):
        edit.shift_bias(network, layer, torch.einsum("grc,gc->gr", weight - fitted, mean).flatten())
    value = from_rows(fitted, gram.geometry, before.shape)
    edit.set_constant(network.graph_module, gram.name, value)
    for layer in gram.layers:
        layer.weight.meta["val"] = value
