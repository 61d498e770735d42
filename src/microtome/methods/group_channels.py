"""Dense convolutions made grouped: inputs in subsets that are processed apart, and merged by the layers behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from microtome.core.channel_grouping import Grouping, grouping
from microtome.core.columns import rows
from microtome.core.composition import Convolution
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Batch, Layer, Network
from microtome.graph.operators import aten
from microtome.graph.operators import groups as groups_of
from microtome.graph.structure.channel_orders import Orders, Side
from microtome.graph.structure.channels import free
from microtome.graph.structure.convolutions import convolution, set_convolution
from microtome.graph.structure.groups import ChannelGroup
from microtome.graph.structure.permuting import moved, permute_units
from microtome.graph.structure.refitting import refit_layers
from microtome.graph.watching.grams import Gram, grams
from microtome.methods.base import EMPTY, SPARSE_FIRST, Batches, Context, Method, Phase, State, check_names

NOISE = 0.01  # of a measured time


@dataclass(frozen=True)
class GroupChannels(Method):
    """Split the channels of convolutions into groups that do not see one another: 1 / groups of weights and products.

    Which channels go together is clustered: outputs and inputs are grouped so that as much as possible of what the
    outputs are made of, squared weights times the variance of what they meet on calibration images, lies inside the
    groups. What is left is refitted, in least squares, to make up for what goes. Channels of a group must lie side by
    side: the layers before and behind are reordered, which changes nothing.

    A layer whose inputs were grouped as outputs of the layer before stays dense, and so mixes the groups; as do layers
    of a single tap. With `gather`, it is grouped too, and reads its inputs in another order, which costs a pass
    (compare Zhang et al., "ShuffleNet", CVPR 2018, section 3.1, where the order is fixed).

    Train afterwards: dense weights are not made to be cut.

    Attributes:
        groups: into how many the channels fall.
        least_channels: inputs and outputs that a group must have: kernels work on 16 at a time.
        least_kept: share of what a layer's outputs are made of that must lie inside the groups; else it stays dense.
        pointwise: group layers of a single tap too.
        gather: reorder inputs by an operator where the layers before cannot take the order.
        skip: names of layers that stay dense.
        images: that are looked at.
        positions: of a layer's output that are drawn per image.
        damping: share of the inputs' mean energy that is added to their second moments.
        measurements: networks that are timed on the target, where that can be measured, beside the one with all layers
            grouped and the one with none: a layer without which the network is faster stays dense. 0 times none.
        seed: of what is drawn.
    """

    groups: int = 2
    least_channels: int = 16
    least_kept: float = 0.0
    pointwise: bool = False
    gather: bool = False
    skip: frozenset[str] = frozenset()
    images: int = 32
    positions: int = 1024
    damping: float = 0.01
    measurements: int = 16
    seed: int = 0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"grouped"})
    again: ClassVar[bool] = True
    not_after: ClassVar[Mapping[str, str]] = SPARSE_FIRST

    def __post_init__(self) -> None:
        """Refuse what is no number of groups, and no share."""
        if self.groups < 2 or self.least_channels < 1 or not 0 <= self.least_kept <= 1:
            raise OptionError("there are two groups or more, and least_kept is a share.", "Correct it.")
        if min(self.images, self.positions) < 1 or self.measurements < 0 or self.damping <= 0:
            raise OptionError("images, positions and damping are above 0, measurements is not below.", "Correct it.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with grouped convolutions.

        Raises:
            OptionError: a layer to skip is not there.
            DataError: there are no calibration images, or one makes a value NaN or infinite.
        """
        check_names(self.skip, (layer.name for layer in network.layers))
        plans, dense = self._plans(network, context.calibration)
        if context.latency is not None and self.measurements and plans:
            slow = _slower(network, plans, context, self.measurements)
            dense.update({plan.name: "the network is faster without its groups" for plan in plans if plan.name in slow})
        else:
            slow = frozenset[str]()
        result = _built(network, plans, frozenset(plan.name for plan in plans) - slow)
        found = {
            "grouped": {plan.name: round(plan.found.kept, 4) for plan in plans if plan.name not in slow},
            "dense": dense,
        }
        return self.done(result, found)

    def _plans(self, network: Network, batches: Batches) -> tuple[list[_Plan], dict[str, str]]:
        """Return what to do with which layers, and why the others stay dense."""
        sites = Orders(network)
        dense: dict[str, str] = {}
        sides = {}
        for layer in network.layers:
            why = self._unfit(network, layer)
            side = None if why is not None else sites.claim(layer, gather=self.gather)
            if side is not None:
                sides[layer.name] = side
            else:
                dense[layer.name] = why or "its inputs cannot be put in another order: gather would"
        plans: list[_Plan] = []
        orders: dict[str, Tensor] = {}
        chosen = [layer for layer in network.layers if layer.name in sides]
        scratch = network.copy()
        settings = {"widest": 1024, "positions": self.positions, "centred": True, "seed": self.seed}
        names = {str(layer.weight.target): layer.name for layer in chosen}
        for gram in grams(network, chosen, _First(batches, self.images), **settings) if chosen else ():  # type: ignore[arg-type]
            name = names[gram.name]
            side, weight = sides[name], network.tensor(gram.name)
            found = self._found(_energy(weight, gram), side, orders)
            if found.kept < self.least_kept:
                dense[name] = f"only {found.kept:.3f} of its outputs lie inside of groups"
                continue
            (layer,) = (layer for layer in scratch.layers if layer.name == name)
            mask = found.mask(self.groups).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)).expand_as(weight)
            own = Gram(gram.name, (layer,), gram.parts, gram.matrices, gram.means, gram.geometry)
            refit_layers(scratch, own, mask.to(weight.device), self.damping)
            value = convolution(scratch, layer.node)
            assert value is not None
            plans.append(_Plan(name, gram.name, self.groups, side, found, value))
            for group, order in plans[-1].taken:
                orders[group.name] = order
        return plans, dense

    def _found(self, energy: Tensor, side: Side, orders: Mapping[str, Tensor]) -> Grouping:
        """Return the groups of a layer's channels, as they are numbered in the network passed."""
        ends = (side.behind, side.before)
        outputs, inputs = (
            torch.arange(size) if group is None else orders.get(group.name, torch.arange(size))
            for group, size in zip(ends, energy.shape, strict=True)
        )
        energy = energy.cpu()[outputs][:, inputs]
        fixed = {"fixed_outputs": not side.orders_outputs, "fixed_inputs": side.fixed}
        found = grouping(energy, self.groups, **fixed, seed=self.seed)
        return Grouping(outputs[found.outputs], inputs[found.inputs], found.kept)

    def _unfit(self, network: Network, layer: Layer) -> str | None:
        """Say why a layer cannot be grouped, or should not."""
        found = convolution(network, layer.node) if layer.op == "conv" else None
        if layer.name in self.skip:
            return "it was to be skipped"
        if found is None or groups_of(layer.node) > 1:
            return "it is no dense convolution"
        if not free(layer.node):
            return "it shares its weight"
        if found.geometry.taps == 1 and not self.pointwise:
            return "it has a single tap, and mixes the groups"
        if any(size % self.groups or size // self.groups < self.least_channels for size in found.weight.shape[:2]):
            return f"it has no {self.groups} groups of {self.least_channels} channels"
        return None


@dataclass(frozen=True, eq=False)
class _Plan:
    """A layer to group: how, and what it computes then, still dense with zeros, its channels in the old order."""

    name: str
    weight: str
    groups: int
    side: Side
    found: Grouping
    value: Convolution

    @property
    def taken(self) -> list[tuple[ChannelGroup, Tensor]]:
        """The groups that this layer puts into order."""
        found = []
        if self.side.behind is not None and self.side.orders_outputs:
            found.append((self.side.behind, self.found.outputs))
        if self.side.before is not None and self.side.orders_inputs:
            found.append((self.side.before, self.found.inputs))
        return found


@dataclass(frozen=True)
class _First:
    """The first batches, each time."""

    batches: Batches
    most: int = field(default=1)

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self.batches), self.most)


def _energy(weight: Tensor, gram: Gram) -> Tensor:
    """Return what each output is made of by each input, (O, I)."""
    variance = torch.cat([matrix.diagonal(dim1=1, dim2=2) for matrix in gram.matrices], 1)
    made = rows(weight, gram.geometry)[0].double().square() * variance
    return made.reshape(*weight.shape[:2], -1).sum(2)


def _built(network: Network, plans: Sequence[_Plan], chosen: frozenset[str]) -> Network:
    """Return the network with the layers chosen grouped; orders are those of all plans."""
    result = network.copy()
    taken = [pair for plan in plans for pair in plan.taken]
    for group, order in taken:
        permute_units(result, group, order)
    layers = {layer.name: layer for layer in result.layers}
    for plan in plans:
        if plan.name in chosen:
            _split(result, layers[plan.name], plan, taken)
    edit.finish(result.graph_module)
    return result


def _split(network: Network, layer: Layer, plan: _Plan, taken: Sequence[tuple[ChannelGroup, Tensor]]) -> None:
    """Group a layer whose neighbours are in order; where its inputs are not, gather them."""
    node, graph, weight = layer.node, network.graph_module.graph, plan.value.weight
    places = [torch.arange(size) for size in weight.shape[:2]]  # which channel lies where by now
    for group, order in taken:
        for member in group.members:
            if member.constant == plan.weight:
                places[member.axis] = places[member.axis][moved(member, group, order)]
    outputs, inputs = places
    if not torch.equal(inputs, plan.found.inputs):
        index = torch.argsort(inputs)[plan.found.inputs].to(weight.device)
        constant = edit.add_constant(network.graph_module, f"{plan.name}.order", index, weight=False)
        with graph.inserting_before(node):
            gathered = graph.call_function(aten.index_select.default, (node.args[0], 1, constant))
        gathered.meta.update(node.args[0].meta)  # type: ignore[union-attr]
        node.update_arg(0, gathered)
    weight = weight[outputs][:, plan.found.inputs]
    bias = None if plan.value.bias is None else plan.value.bias[outputs]
    parts = weight.reshape(plan.groups, -1, *weight.shape[1:])
    blocks = [part.chunk(plan.groups, 1)[k] for k, part in enumerate(parts)]
    walk = replace(plan.value.geometry, groups=plan.groups)
    set_convolution(network, node, Convolution(torch.cat(blocks), bias, walk))


def _slower(network: Network, plans: Sequence[_Plan], context: Context, measurements: int) -> frozenset[str]:
    """Return the layers without whose groups the network is faster on the target; all, if it is with none."""
    assert context.latency is not None
    names = [plan.name for plan in plans]
    left = frozenset(names)
    before, now = context.latency(network), context.latency(_built(network, plans, left))
    size = -(-len(names) // measurements)
    for start in range(0, len(names), size):
        without = left - frozenset(names[start : start + size])
        time = context.latency(_built(network, plans, without)) if without else before
        if time < now * (1 - NOISE):
            left, now = without, time
    return frozenset(names) - left if now <= before * (1 - NOISE) else frozenset(names)
