"""Narrow convolutions that compute several columns of their output side by side, as channels."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn.functional import pad

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, kind
from microtome.graph.rewriting.column_operators import TO_CHANNELS, TO_COLUMNS
from microtome.graph.rewriting.narrow_convs import Fold, each, folds, reaches_a_quantizer, shape
from microtome.graph.rewriting.weights import give_weight, take_channels


def columns_as_channels(network: Network) -> Network:
    """Return the network with narrow integer convolutions that fill the vector registers.

    A convolution to 8 channels leaves half of each register empty. One with stride 2 along the last axis and a kernel
    that is wider by one computes two neighbouring columns at once, as 16 channels, from the same input: 4 taps for two
    columns in place of 2 · 3. Where channels lie innermost in memory, its result is, byte by byte, that of the narrow
    layer, so that nothing has to be moved to go on at full width. What follows the layer, up to the next quantizer,
    works on the channels side by side: runtimes still compute all of it in one kernel. Transposed convolutions whose
    kernel is their stride lose the last axis of both likewise.

    A layer that reads a concatenation of narrow parts becomes a sum of layers that read one part each.

    Only where the number of columns divides each width that the network accepts.
    """
    chosen = {node.name: fold for node, fold in folds(network).items()}
    if not chosen:
        return network
    network = network.copy()
    folding = _Folding(network)
    for node in list(network.graph_module.graph.nodes):
        if node.name in chosen:
            folding.layer(node, chosen[node.name])
        else:
            folding.follow(node)
    edit.finish(network.graph_module)
    return network


@dataclass(frozen=True)
class _View:
    """A value at full width that is made from a folded one.

    Attributes:
        folded: (N, columns · C, *S, W / columns), column by column.
        width: W, a node.
        channels: C.
        columns: side by side.
    """

    folded: Node
    width: Node
    channels: int
    columns: int

    @property
    def sources(self) -> Tensor:
        """The channel that each folded channel is made of."""
        return torch.arange(self.channels).repeat(self.columns)


class _Folding:
    """Folds layers and what follows them, in the order of the graph. Edits in place."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.graph: Graph = network.graph_module.graph
        self.views: dict[Node, _View] = {}

    def layer(self, node: Node, fold: Fold) -> None:
        """Fold a layer."""
        layers = self._split(node) if fold.split else [node]
        with self.graph.inserting_before(node):
            width = self.graph.call_function(aten.sym_size.int, (node.args[0], len(shape(node)) - 1))
            if fold.transposed:
                width = self.graph.call_function(operator.mul, (width, fold.columns))
        for layer in layers:
            self._widen(layer, fold)
        total = node
        for layer in layers[1:]:
            total = self._sum(total, layer)
        self._unfold(total, width, fold.channels, fold.columns)

    def follow(self, node: Node) -> None:
        """Let a node read folded values, if what it computes goes to a quantizer."""
        inputs = [value for value in node.args if isinstance(value, Node)]
        views = [self.views[value] for value in inputs if value in self.views]
        if not views or not reaches_a_quantizer(node) or len({view.columns for view in views}) > 1:
            return
        if kind(node) == "add" and (node.kwargs or [shape(value) for value in inputs] != 2 * [shape(node)]):
            return
        if node.target._schema.is_mutable and len(inputs[0].users) > 1:  # type: ignore[union-attr]
            return
        view = views[0]
        for value in dict.fromkeys(inputs if kind(node) == "add" else inputs[:1]):
            known = self.views.get(value)
            node.replace_input_with(value, self._folded(value, node, view) if known is None else known.folded)
        take_channels(self.network, node, view.sources)
        self._unfold(node, view.width, view.channels, view.columns)

    def _split(self, node: Node) -> list[Node]:
        """Let a layer read the first part of a concatenation, and make layers that read the others."""
        module = self.network.graph_module
        values: Any = node.args[0].args[0]  # type: ignore[union-attr]
        source = constant_source(node.args[1])
        assert source is not None
        name = str(source.target)
        channels = [int(shape(value)[1]) for value in values]
        first, *others = torch.split(self.network.tensor(name), channels, 1)
        layers = [node]
        for number, (value, weight) in enumerate(zip(values[1:], others, strict=True), 2):
            constant = edit.add_constant(module, f"{name.removesuffix('.weight')}.part{number}.weight", weight)
            with self.graph.inserting_after(layers[-1]):
                quantizer = self.graph.node_copy(node.args[1])  # type: ignore[arg-type]
            quantizer.args = (constant, *quantizer.args[1:])
            with self.graph.inserting_after(quantizer):
                layers.append(self.graph.node_copy(node))
            layers[-1].args = (value, quantizer, None, *node.args[3:])
        give_weight(self.network, node, first, torch.arange(len(first)))
        node.args = (values[0], *node.args[1:])
        return layers

    def _widen(self, node: Node, fold: Fold) -> None:
        """Give a layer the kernel, the stride and the channels of several columns."""
        source = constant_source(node.args[1])
        assert source is not None
        weight = self.network.tensor(str(source.target))
        wide = torch.cat(torch.split(weight, 1, -1), 1) if fold.transposed else _side_by_side(weight, fold.columns)
        channels = torch.arange(fold.channels).repeat(fold.columns)
        give_weight(self.network, node, wide, channels, axis=1 if fold.transposed else 0)
        stride = each(node, 3, "stride", 1, weight.ndim - 2)
        stride[-1] = 1 if fold.transposed else fold.columns
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "stride"}
        node.args = (*[*node.args, None][:3], stride, *node.args[4:])

    def _sum(self, first: Node, second: Node) -> Node:
        """Add another part to what has been summed so far."""
        with self.graph.inserting_after(second):
            total = self.graph.call_function(aten.add.Tensor, (first, second))
        total.meta["val"] = first.meta["val"]
        first.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        return total

    def _unfold(self, node: Node, width: Node, channels: int, columns: int) -> None:
        """Give a folded node's readers its value at full width."""
        readers = list(node.users)
        with self.graph.inserting_after(node):
            view = self.graph.call_function(TO_COLUMNS, (node, columns, width))
        view.meta["val"] = node.meta["val"]
        for reader in readers:
            reader.replace_input_with(node, view)
        self.views[view] = _View(node, width, channels, columns)

    def _folded(self, value: Node, reader: Node, like: _View) -> Node:
        """Return another value in the same folded form."""
        with self.graph.inserting_before(reader):
            width = self.graph.call_function(aten.sym_size.int, (like.folded, len(shape(value)) - 1))
            return self.graph.call_function(TO_CHANNELS, (value, like.columns, width))


def _side_by_side(weight: Tensor, columns: int) -> Tensor:
    """Return (Cout, Cin, *K, k) as (columns · Cout, Cin, *K, k + columns - 1), each column's kernel one further."""
    return torch.cat([pad(weight, (column, columns - 1 - column)) for column in range(columns)], 0)
