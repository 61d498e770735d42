"""Channels that say what others say, merged into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.channel_merging import ChannelMoments, Merge, costs, explained, explained_by_one, merges, standing
from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.operators import groups as groups_of
from microtome.graph.operators import kind
from microtome.graph.structure.channels import free
from microtome.graph.structure.groups import Analysis, ChannelGroup, analyse
from microtome.graph.structure.removal import keep_units
from microtome.graph.watching.distribution import mean_response
from microtome.graph.watching.observe import Unquantized
from microtome.methods.base import EMPTY, SPARSE_FIRST, Batches, Context, Method, Phase, State, check_names

WIDEST = 4096  # inputs of a layer whose covariance is kept
ENOUGH = 10  # values per unknown of a least-squares fit
# Operators that make one unit of others: what is merged would change what it says of those that stay.
MIXERS = frozenset(
    {
        *("layer_norm", "group_norm", "matmul", "bmm", "attention", "einsum"),
        *("softmax", "_softmax", "log_softmax", "_log_softmax"),
    }
)


@dataclass(frozen=True)
class MergeChannels(Method):
    """Remove channels that others tell, and let those who read them read the others instead.

    Duplicates, multiples of one another and constant channels go for nothing; of near-duplicates the cheapest go first.
    What a channel costs is measured at the layers that read it, on calibration images: the variance that no line over
    the channel that stands for it explains, times the squared weights that read it, as a share of what each layer
    reads. Channels that are added or concatenated go together (`graph.structure.groups`). Then each reader is refitted:
    its columns for what stays take up the columns for what goes, in least squares, and its bias the means (compare
    Srinivas and Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015, section 3, for pairs; He et
    al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, equation 1, for the fit).

    A mean that goes into a bias is also added where the reader pads with zeros, and to all taps of a transposed
    convolution alike.

    Attributes:
        most_error: share of what a layer reads that a merged channel may cost.
        share: of all channels that could be merged, so many are, whatever that costs; None goes by `most_error`.
        fit: readers are refitted on `all` channels that stay, where there are values enough, or on the `one` that
            stands for a channel.
        least: channels that stay in each group.
        multiple: widths are rounded up to it: what the target's kernels like, such as 16.
        skip: groups, by the name of their first layer, that stay whole.
    """

    most_error: float = 1e-3
    share: float | None = None
    fit: Literal["all", "one"] = "all"
    least: int = 1
    multiple: int = 1
    skip: frozenset[str] = frozenset()

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"merged"})
    again: ClassVar[bool] = True
    not_after: ClassVar[Mapping[str, str]] = SPARSE_FIRST

    def __post_init__(self) -> None:
        """Refuse what is no share and no width."""
        if self.most_error < 0 or not 0 <= (self.share or 0) < 1:
            raise OptionError("most_error is not negative, and share lies from 0 to below 1.", "Correct it.")
        if self.least < 1 or self.multiple < 1:
            raise OptionError("least and multiple are at least 1.", "Correct it.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the narrower network.

        Raises:
            OptionError: `skip` names a group that the network does not have.
            DataError: there are no calibration images, or one makes a value NaN or infinite.
        """
        network = network.copy()
        analysis = analyse(network)
        check_names(self.skip, (group.name for group in analysis.groups), "group")
        layers = {str(layer.weight.target): layer for layer in network.layers}
        reasons = _reasons(analysis, layers)
        open_groups = [group for group in analysis.groups if group.name not in {*reasons, *self.skip}]
        readings = {group.name: _readings(group, layers) for group in open_groups}
        seen = _look(network, {r.layer.node for found in readings.values() for r in found}, context.calibration)
        orders = {
            group.name: merges(self._costs(network, group, readings[group.name], seen), self.least)
            for group in open_groups
        }
        chosen = self._chosen(open_groups, orders)
        _refit(network, readings, chosen, seen, alone=self.fit == "one")
        kept = {
            group.name: sorted(set(range(group.units)) - {merge.gone for merge in chosen[group.name]})
            for group in open_groups
            if chosen[group.name]
        }
        narrow = keep_units(network, kept) if kept else network
        edit.finish(narrow.graph_module)
        found = {
            "merged_channels": {name: len(order) for name, order in chosen.items()},
            "error": max((merge.cost for order in chosen.values() for merge in order), default=0.0),
            "not_merged": reasons,
        }
        return self.done(narrow, found)

    def _costs(
        self, network: Network, group: ChannelGroup, found: Sequence[_Reading], seen: Mapping[Node, ChannelMoments]
    ) -> Tensor:
        """Return what it costs to tell each unit of a group by each other one, (U, U)."""
        total = torch.zeros((group.units, group.units), dtype=torch.float64)
        for reading in found:
            covariance, energy = seen[reading.layer.node].covariance.cpu(), reading.energy(network).cpu()
            whole = float((covariance.diagonal().clamp(min=0.0) * energy).sum())
            for inputs in reading.inputs.T if whole else ():
                total += costs(covariance[inputs][:, inputs], energy[inputs]) / whole
        return total

    def _chosen(self, open_groups: Sequence[ChannelGroup], orders: Mapping[str, list[Merge]]) -> dict[str, list[Merge]]:
        """Return the merges to do, by group."""
        ranked = sorted(merge.cost for order in orders.values() for merge in order)
        limit = self.most_error
        if self.share is not None:
            count = min(len(ranked), round(self.share * sum(group.units for group in open_groups)))
            limit = ranked[count - 1] if count else -1.0
        chosen = {}
        for group in open_groups:
            gone = sum(merge.cost <= limit for merge in orders[group.name])
            width = -(-(group.units - gone) // self.multiple) * self.multiple
            chosen[group.name] = orders[group.name][: max(0, group.units - width)]
        return chosen


@dataclass(frozen=True, eq=False)
class _Reading:
    """A layer that reads a group: which of its inputs each unit is, (U, several)."""

    layer: Layer
    axis: int
    inputs: Tensor

    def energy(self, network: Network) -> Tensor:
        """Return the sum of the squared weights of each input, (I,)."""
        weight = network.tensor(str(self.layer.weight.target)).movedim(self.axis, 0)
        return weight.double().square().flatten(1).sum(1)


def _reasons(analysis: Analysis, layers: Mapping[str, Layer]) -> dict[str, str]:
    """Return why groups stay whole."""
    mixed: dict[int, str] = {}
    for node in analysis.flow.values:
        if kind(node) not in MIXERS:
            continue
        for value in node.all_input_nodes:
            labels = analysis.flow.values.get(value)
            for part in labels if isinstance(labels, list) else [] if labels is None else [labels]:
                for number in torch.unique(analysis.group_of[analysis.flow.labels.find(part)]).tolist():
                    mixed.setdefault(number, f"{kind(node)} mixes its channels")
    reasons: dict[str, str] = {}
    for number, group in enumerate(analysis.groups):
        reading = [member for member in group.members if member.role == "reads"]
        if group.reason is not None:
            reasons[group.name] = group.reason
        elif group.kind == "heads" or group.parts > 1:
            reasons[group.name] = "its channels cannot go one by one"
        elif number in mixed:
            reasons[group.name] = mixed[number]
        elif not reading:
            reasons[group.name] = "no layer reads it"
        for member in reading:
            layer = layers[member.constant]
            counts = torch.bincount(member.units[member.units >= 0], minlength=group.units)
            if not free(layer.node) or groups_of(layer.node) > 1:
                reasons.setdefault(group.name, f"{layer.name} shares its weight, or reads groups of channels")
            elif len(torch.unique(counts)) > 1 or len(member.units) > WIDEST:
                reasons.setdefault(group.name, f"{layer.name} reads too many channels, or some more often than others")
    return reasons


def _readings(group: ChannelGroup, layers: Mapping[str, Layer]) -> list[_Reading]:
    found = []
    for member in group.members:
        if member.role == "reads":
            order = torch.argsort(member.units, stable=True)
            ours = order[int((member.units < 0).sum()) :]
            found.append(_Reading(layers[member.constant], member.axis, ours.reshape(group.units, -1)))
    return found


def _look(network: Network, nodes: Iterable[Node], batches: Batches) -> dict[Node, ChannelMoments]:
    """Stream the moments of what layers read."""
    seen = {node: ChannelMoments() for node in nodes}

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        x = arguments[0]
        seen[node].update(x.movedim(x.ndim - 1 if kind(node) == "linear" else 1, 0).flatten(1))

    run = Unquantized(network, seen, look)
    for batch in batches if seen else ():
        run(batch)
    for node, moments in seen.items():
        if not moments.count:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        if not bool(torch.isfinite(moments.covariance).all()):
            raise DataError(
                f"a calibration image makes what {node.name} reads NaN or infinite.",
                "Check the pre-processing and the weights.",
            )
    return seen


def _refit(
    network: Network,
    readings: Mapping[str, Sequence[_Reading]],
    chosen: Mapping[str, Sequence[Merge]],
    seen: Mapping[Node, ChannelMoments],
    *,
    alone: bool,
) -> None:
    """Let readers take up what goes, in place; the columns that read it stay, to be cut."""
    pairs: dict[Node, tuple[_Reading, list[Tensor], list[Tensor]]] = {}
    for name, order in chosen.items():
        last = standing(order)
        for reading in readings[name] if order else ():
            _, gone_parts, kept_parts = pairs.setdefault(reading.layer.node, (reading, [], []))
            gone_parts.append(reading.inputs[list(last)].flatten())
            kept_parts.append(reading.inputs[list(last.values())].flatten())
    for node, (reading, gone_parts, kept_parts) in pairs.items():
        moments, layer = seen[node], reading.layer
        gone, kept = torch.cat(gone_parts), torch.cat(kept_parts)
        old = network.tensor(str(layer.weight.target))
        weight = old.movedim(reading.axis, 0).double().clone()
        inputs = torch.arange(len(weight))
        stay = inputs[~torch.isin(inputs, gone)]
        shift = torch.zeros(len(weight), dtype=torch.float64, device=old.device)
        lost = weight[gone]
        if alone or moments.count < ENOUGH * len(stay):
            slope, shift[gone] = explained_by_one(moments, gone, kept)
            weight.index_add_(0, kept.to(old.device), slope.reshape(-1, *[1] * (weight.ndim - 1)) * lost)
        else:
            matrix, shift[gone] = explained(moments, gone, stay)
            weight[stay] += torch.tensordot(matrix.T, lost, 1)
        response = mean_response(node, old.double(), shift)
        edit.own_constant(network.graph_module, node, 1, weight.movedim(0, reading.axis).to(old.dtype))
        edit.shift_bias(network, layer, response.to(old.dtype))
