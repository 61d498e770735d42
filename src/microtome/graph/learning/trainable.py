"""A network in training: its quantizers and batch norms become modules, and nodes again when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from microtome.graph import edit
from microtome.graph.learning.learned_grids import Grid
from microtome.graph.learning.memory import channels_last, usual
from microtome.graph.learning.training_norms import train_norms
from microtome.graph.network import Batch, Network, first
from microtome.graph.operators import constant_source, kind
from microtome.graph.quantizers import Quantizer, quantizers
from microtome.graph.quiet import quiet

Factory = Callable[[Quantizer], Grid | None]
PREFIX = "quantizer_modules"
HELPERS = "helper_modules"
SPARSE = "sparse"
# Where the scale is among the arguments of norms.
SCALES = {"batch_norm": 1, "instance_norm": 1, "group_norm": 2, "layer_norm": 2}


@dataclass(frozen=True)
class Slot:
    """One quantizer in training: its place in `quantizers()`, what it was, its module and node, and the name of the
    weight that it rounds (None for activations).
    """

    position: int
    quantizer: Quantizer
    module: Grid
    node: Node
    weight: str | None


class Trainable:
    """An independent copy of a network in which gradients flow.

    Without quantizers it computes with channels last, which is faster.

    Attributes:
        network: what was copied.
        module: the graph, callable; its weights and the quantizers' own parameters are learned.
        slots: the quantizers that became modules, in the graph's order.
    """

    def __init__(
        self, network: Network, *, weight: Factory | None = None, activation: Factory | None = None, norms: bool = False
    ) -> None:
        """Copy the network.

        Args:
            network: quantized, or not.
            weight: makes the module for a weight's quantizer; None, given or made, leaves the node and its grid.
            activation: likewise for activations.
            norms: whether batch norms that are still in the graph use and learn the statistics of batches.
        """
        self.network = network
        copied = network.copy()
        self.module: GraphModule = copied.graph_module
        scales = {_source(node, SCALES[kind(node)]) for node in self.module.graph.nodes if kind(node) in SCALES}
        self._scales = {scale for scale in scales if scale is not None}
        in_float = not list(quantizers(copied))
        self.slots: tuple[Slot, ...] = tuple(self._replace(copied, weight or _nothing, activation or _nothing))
        self._statistics: tuple[str, ...] = train_norms(self.module) if norms else ()
        if in_float:
            channels_last(self.module)
        self.module.graph.lint()
        self.module.recompile()
        for parameter in self.module.parameters():
            parameter.requires_grad_(True)

    def _replace(self, network: Network, weight: Factory, activation: Factory) -> Iterator[Slot]:
        graph = self.module.graph
        for position, quantizer in enumerate(list(quantizers(network))):
            made = (weight if quantizer.kind == "weight" else activation)(quantizer)
            if made is None:
                continue
            name = f"{PREFIX}_{position}"
            self.module.add_module(name, made)
            source = constant_source(quantizer.node)
            with graph.inserting_after(quantizer.node):
                node = graph.call_module(name, (quantizer.node.args[0],))
            node.meta.update(quantizer.node.meta)
            quantizer.node.replace_all_uses_with(node)
            graph.erase_node(quantizer.node)
            yield Slot(position, quantizer, made, node, None if source is None else str(source.target))

    def __call__(self, x: Batch) -> Tensor:
        """Run the graph and return its first output: (N, C, *S) → (N, K, *S) or (N, K)."""
        output: Tensor = first(self.module(*self.network.arguments(x)))
        return output

    def weight_of(self, slot: Slot) -> nn.Parameter:
        """Return the parameter that a weight's quantizer rounds."""
        assert slot.weight is not None
        return self.module.get_parameter(slot.weight)

    def weights(self) -> list[nn.Parameter]:
        """Return what the network itself learns: weights, biases, scales of norms."""
        return [p for name, p in self.module.named_parameters() if not name.startswith((PREFIX, HELPERS))]

    def help(self, name: str, helper: nn.Module) -> None:
        """Add a module that learns beside the network, is kept in checkpoints, and dropped when training is done."""
        self.module.add_module(f"{HELPERS}_{name}", helper)

    def helpers(self) -> list[nn.Parameter]:
        """Return what helpers learn."""
        return [p for name, p in self.module.named_parameters() if name.startswith(HELPERS)]

    def norm_scales(self) -> list[nn.Parameter]:
        """Return the scales of norms, one value per channel each."""
        return [self.module.get_parameter(name) for name in sorted(self._scales) if self.network.is_weight(name)]

    def masks(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return the weights that hold zeros, with 1 where they do not; none of a network that is not `sparse`."""
        if SPARSE not in self.network.state:
            return []
        names = dict.fromkeys(str(layer.weight.target) for layer in self.network.layers)
        found = [(self.module.get_parameter(name), self.network.tensor(name) != 0) for name in names]
        return [(weight, alive.to(weight.dtype)) for weight, alive in found if not bool(alive.all())]

    def grids(self) -> list[nn.Parameter]:
        """Return what the quantizers learn."""
        return [p for name, p in self.module.named_parameters() if name.startswith(PREFIX)]

    @torch.no_grad()
    def freeze(self) -> Network:
        """Return the network with what was learned: weights on their grids, the grids, norms' statistics."""
        network = self.network.copy()
        for name, parameter in self.module.named_parameters():
            if not name.startswith((PREFIX, HELPERS)):
                edit.set_constant(network.graph_module, name, usual(parameter))
        for name in self._statistics:
            edit.set_constant(network.graph_module, name, self.module.get_buffer(name), weight=False)
        nodes = [quantizer.node for quantizer in quantizers(network)]
        formats = dict(network.formats)
        with quiet():
            for slot in self.slots:
                node = nodes[slot.position]
                if slot.weight is not None:
                    settled = slot.module.settled(self.weight_of(slot))
                    edit.own_constant(network.graph_module, node, 0, settled)
                    encoding = slot.module.encoding()
                    if encoding is not None:
                        formats[str(node.args[0].target)] = encoding  # type: ignore[union-attr]
                edit.set_grid(network.graph_module, node, slot.module.grid())
            edit.finish(network.graph_module)
        return replace(network, formats=formats)


def _nothing(_: Quantizer) -> None:
    """Leave a quantizer as it is."""


def _source(node: Node, position: int) -> str | None:
    """Return the name of the constant that is an argument of a node."""
    source = constant_source(node.args[position]) if len(node.args) > position else None
    return None if source is None else str(source.target)
