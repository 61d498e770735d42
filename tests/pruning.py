"""What removing units must come to: the network in which they are zero, and norms do not count them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter
from torch.nn import functional

from microtome.graph import edit
from microtome.graph.network import Network, first
from microtome.graph.structure.groups import ChannelGroup
from microtome.graph.structure.removal import keep_units

# Fewer summands, added in another order, through some dozen layers.
ROUNDING = 1e-4


class WithoutZeros(Interpreter):
    """Runs a graph with layer and group norms that leave out the channels that are zero everywhere."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator."""
        if target is torch.ops.aten.layer_norm.default:
            return _layer_norm(*args, **kwargs)
        if target is torch.ops.aten.group_norm.default:
            return _group_norm(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    assert len(shape) == 1
    there = (x != 0).reshape(-1, x.shape[-1]).any(0)
    result = torch.zeros_like(x)
    scale, shift = (None if c is None else c[there] for c in (weight, bias))
    result[..., there] = functional.layer_norm(x[..., there], [int(there.sum())], scale, shift, eps)
    return result


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    result = torch.zeros_like(x)
    width = x.shape[1] // groups
    for start in range(0, x.shape[1], width):
        there = start + (x[:, start : start + width] != 0).transpose(0, 1).reshape(width, -1).any(1).nonzero()[:, 0]
        if len(there):
            scale, shift = (None if c is None else c[there] for c in (weight, bias))
            result[:, there] = functional.group_norm(x[:, there], 1, scale, shift, eps)
    return result


def some(group: ChannelGroup, share: float = 0.3, seed: int = 0) -> list[int]:
    """Return the units of a group that stay when about a share of them goes, at least one, chosen at random.

    Of each part equally many go; where a part loses nothing by that, whole parts go.
    """
    generator = torch.Generator().manual_seed(seed)
    width = group.units // group.parts
    keep = min(max(round(width * (1 - share)), 1), width)
    parts = range(group.parts)
    if keep == width:
        kept = max(round(group.parts * (1 - share)), 1)
        parts = sorted(torch.randperm(group.parts, generator=generator)[:kept].tolist())  # type: ignore[assignment]
    chosen: list[int] = []
    for part in parts:
        order = torch.randperm(width, generator=generator)[:keep]
        chosen += [part * width + place for place in sorted(order.tolist())]
    return chosen


def zeroed(network: Network, group: ChannelGroup, kept: list[int]) -> Network:
    """Return the network with everything zero that belongs to the units that go."""
    network = network.copy()
    stays = torch.zeros(group.units + 1, dtype=torch.bool)
    stays[kept], stays[-1] = True, True  # -1: none of this group
    for member in group.members:
        value = network.tensor(member.constant).clone()
        if "running_var" not in member.constant and "running_mean" not in member.constant:
            value.index_fill_(member.axis, (~stays[member.units]).nonzero()[:, 0], 0)
        weight = network.is_weight(member.constant)
        for name, other in network.constants().items():
            if other.data_ptr() == network.tensor(member.constant).data_ptr() and name != member.constant:
                edit.set_constant(network.graph_module, name, value, weight=weight)
        edit.set_constant(network.graph_module, member.constant, value, weight=weight)
    return network


def difference(
    network: Network, group: ChannelGroup, x: Tensor, kept: list[int] | None = None, *, heard: bool = True
) -> float:
    """Return by how much the network without some units differs from the one where they are zero, relative to it.

    Units that the output does not feel would show nothing: `heard` says that there are none.
    """
    kept = some(group) if kept is None else kept
    assert len(kept) < group.units
    smaller = keep_units(network, {group.name: kept})
    assert smaller.parameters < network.parameters
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in network.layers]
    with torch.no_grad():
        expected = first(WithoutZeros(zeroed(network, group, kept).graph_module).run(x))
        actual = smaller(x)
        assert not (heard and torch.equal(expected, network(x))), "units that do nothing show nothing"
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-12))
