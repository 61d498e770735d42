"""What the units of channel groups cost: weights, and multiplications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from microtome.core.removal import Axis, Sizes
from microtome.graph.network import Network
from microtome.graph.structure.groups import ChannelGroup
from microtome.graph.watching.macs import layer_sizes


def prices(network: Network, groups: Sequence[ChannelGroup], of: Literal["parameters", "macs"]) -> Sizes:
    """Return what can be saved by removing units: each tensor counts once, whatever its names.

    Args:
        network: as it is.
        groups: whose units may go.
        of: `parameters` are all weights, as `Network.parameters` counts them; `macs` the multiply-accumulates of layers
            for one input of the network's own shape.
    """
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    known, shapes = {}, {}
    for name, tensor in network.constants().items():
        known[name] = first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        shapes[known[name]] = tuple(tensor.shape)
    price: dict[str, float] = {}
    if of == "parameters":
        price = {known[name]: 1.0 for name in known if network.is_weight(name)}
    else:
        for layer, size in zip(network.layers, layer_sizes(network), strict=True):
            name = known[str(layer.weight.target)]
            price[name] = price.get(name, 0.0) + size.macs / size.weights
    axes = {
        group.name: [Axis(known.get(m.constant, m.constant), m.axis, m.units) for m in group.members]
        for group in groups
    }
    return Sizes(shapes, price, axes)


def columns_left(
    network: Network, groups: Sequence[ChannelGroup], gone: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return for the weight of each layer that reads units which go where it is kept: a mask of the weight's shape."""
    masks: dict[str, Tensor] = {}
    layers = {network.tensor(str(la.weight.target)).data_ptr(): str(la.weight.target) for la in network.layers}
    for group in groups:
        stays = torch.ones(group.units + 1, dtype=torch.bool)
        stays[list(gone.get(group.name, ()))] = False
        for member in group.members:
            tensor = network.tensor(member.constant)
            name = layers.get(tensor.data_ptr())
            if member.role != "reads" or name is None or bool(stays.all()):
                continue
            kept = stays[member.units].to(tensor.device)  # -1 is the last: it stays
            shape = [-1 if axis == member.axis else 1 for axis in range(tensor.ndim)]
            whole = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
            masks[name] = whole & kept.reshape(shape)
    return masks
