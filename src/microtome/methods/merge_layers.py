"""Layers that compute one linear function together, merged into one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from torch import Tensor
from torch.fx import Node

from microtome.core.composition import Convolution, composed, identity, summed
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import is_weighted, kind
from microtome.graph.structure.blocks import writes
from microtome.graph.structure.channels import free
from microtome.graph.structure.convolutions import convolution, means, set_convolution
from microtome.graph.watching.observe import Observed
from microtome.methods.base import EMPTY, Context, Method, Phase, State, check_names


@dataclass(frozen=True)
class MergeLayers(Method):
    """Merge layers with nothing between them, and branches that are added, into one convolution each.

    - A layer behind a layer: W₂W₁. Two kernels become one with a larger kernel, a convolution and an average pool one
      with a stride, where that has no more weights.
    - Branches over the same value whose results are added, a bare shortcut among them: the sum of their kernels, the
      smaller in the middle of the larger (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021,
      section 3.3).
    - A 1×1 convolution before a mean over space (a pool) goes behind it, and one behind an upsampling before it, to
      where the image is smaller.

    The network computes the same as before, but for rounding. What is not exact stays as it is: where the second layer
    pads with zeros, and the first has a bias or a larger kernel, the border would differ. So does what would cost more
    multiplications, or more weights than the parts have together; layers that were factorized stay so.

    Attributes:
        most_weights: how many times the parts' weights a merged layer may have, if it multiplies less. With 2, a
            convolution and the average pool behind it are merged: 1.8 times the weights, 0.4 of the multiplications.
        skip: names of layers that are left as they are.
    """

    most_weights: float = 1.0
    skip: frozenset[str] = frozenset()

    phase: ClassVar[Phase] = Phase.STRUCTURE
    needs: ClassVar[State] = frozenset({"folded"})
    leaves: ClassVar[State] = frozenset({"merged"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse to lose what has to be merged."""
        if self.most_weights < 1:
            raise OptionError(f"most_weights is 1 or more, not {self.most_weights}.", "1 never adds weights.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with merged layers; no data is read.

        Raises:
            OptionError: `skip` names a layer that the network does not have.
        """
        check_names(self.skip, (layer.name for layer in network.layers))
        network = network.copy()
        left = frozenset(layer.node for layer in network.layers if layer.name in self.skip)
        merger = _Merger(network, self.most_weights, left, _sizes(network))
        while any(merger.merge(node) for node in list(network.graph_module.graph.nodes)):
            pass
        edit.finish(network.graph_module)
        return self.done(network, {"merged": dict(merger.merged), "not_merged": dict(merger.refused())})


@dataclass(eq=False)
class _Merger:
    """Merges layers of a graph in place, and counts."""

    network: Network
    most_weights: float
    left: frozenset[Node]
    sizes: dict[Node, tuple[int, ...]]
    merged: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[Node, Node], str] = field(default_factory=dict)

    def refused(self) -> Counter[str]:
        """Return how many pairs were left, by reason."""
        there = set(self.network.graph_module.graph.nodes)
        return Counter(why for pair, why in self.reasons.items() if there.issuperset(pair))

    def merge(self, node: Node) -> bool:
        """Merge what a node and those before it compute; return whether something changed."""
        if node in self.left or node.op != "call_function" or not node.args:
            return False
        before = node.args[0]
        if not isinstance(before, Node):
            return False
        alone = before not in self.left and list(before.users) == [node]
        pair = alone and (self._chain(before, node) or self._exchange(before, node))
        return pair or (kind(node) == "add" and self._branches(node))

    def _chain(self, first: Node, second: Node) -> bool:
        """Merge a layer into the one that it alone is read by."""
        if not self._ours(first) or not (self._ours(second) or kind(second) == "avg_pool"):
            return False
        one, other = (convolution(self.network, node) for node in (first, second))
        if one is None or other is None or len(one.geometry.kernel) != len(other.geometry.kernel):
            return False
        if any(writes(user) for user in first.all_input_nodes[0].users):
            return False
        parts = [(one, first), (other, second)] if is_weighted(second) else [(one, first)]
        result = composed(one, other, most=self.most_weights * _weights(parts))
        if not self._gains(first, second, result, parts, second):
            return False
        assert result is not None
        up = first if kind(first) == "conv_transpose" else second
        if result.geometry.transposed and up is second:
            second.args = (first.args[0], *second.args[1:])
            kept, gone = second, first
        else:
            kept, gone = first, second
            first.meta = dict(second.meta)
            second.replace_all_uses_with(first)
        self.sizes[kept] = self.sizes[second]
        self._settle(kept, gone, result, "chains")
        return True

    def _branches(self, total: Node) -> bool:
        """Merge two terms of a sum that are layers over the same value, or one of them and that value itself."""
        terms = [term for term in total.args if self._ours(term) and list(term.users) == [total]]  # type: ignore[union-attr]
        if len(total.args) != 2 or total.kwargs or not terms or total.args[0] is total.args[1]:
            return False
        kept: Node = terms[0]  # type: ignore[assignment]
        other, source = total.args[1 if total.args[0] is kept else 0], kept.args[0]
        if not isinstance(source, Node) or any(writes(user) for user in source.users):
            return False
        bare = other is source
        if not bare and (other not in terms or other.args[0] is not source):  # type: ignore[union-attr]
            return False
        one = convolution(self.network, kept)
        two = self._bare(kept, one) if bare else convolution(self.network, other)  # type: ignore[arg-type]
        if one is None or two is None or len(one.geometry.kernel) != len(two.geometry.kernel):
            return False
        assert isinstance(other, Node)
        parts = [(one, kept)] if bare else [(one, kept), (two, other)]
        result = summed(one, two, most=self.most_weights * _weights(parts))
        if not self._gains(kept, other, result, parts, kept):
            return False
        assert result is not None
        kept.meta = dict(total.meta)
        total.replace_all_uses_with(kept)
        self.network.graph_module.graph.erase_node(total)
        self._settle(kept, None if bare else other, result, "branches")
        return True

    def _bare(self, layer: Node, found: Convolution | None) -> Convolution | None:
        """Return what passes a layer's input on, if that has the shape of its output."""
        source = layer.args[0]
        if found is None or found.geometry.transposed or self.sizes[layer] != self.sizes[source]:  # type: ignore[index]
            return None
        return identity(found.weight.shape[0], len(found.geometry.kernel), found.weight)

    def _exchange(self, first: Node, second: Node) -> bool:
        """Let a 1×1 convolution and a mean over space change places, where the image is smaller then."""
        value = first.args[0] if first.args else None
        if not isinstance(value, Node) or not self.sizes.keys() >= {value, first, second}:
            return False
        if any(writes(user) for user in value.users):
            return False
        down = self._takes_each_place(first) and means(second)
        up = self._takes_each_place(second) and means(first)
        before, middle, end = (prod(self.sizes[node][2:]) for node in (value, first, second))
        if not (down and end < middle) and not (up and before < middle):
            return False
        graph = self.network.graph_module.graph
        with graph.inserting_before(first if down else second):
            early = graph.call_function(second.target, (value, *second.args[1:]), dict(second.kwargs))  # type: ignore[arg-type]
            late = graph.call_function(first.target, (early, *first.args[1:]), dict(first.kwargs))  # type: ignore[arg-type]
        space, channels = (second, self.sizes[value][1]) if down else (value, self.sizes[second][1])
        like = space.meta["val"]
        early.meta["val"] = like.new_empty((like.shape[0], channels, *like.shape[2:]))
        late.meta = dict(second.meta)
        self.sizes[late] = self.sizes[second]
        self.sizes[early] = (self.sizes[value][0], channels, *self.sizes[space][2:])
        second.replace_all_uses_with(late)
        for node in (second, first):
            graph.erase_node(node)
        self.merged["exchanged"] += 1
        return True

    def _takes_each_place(self, node: Node) -> bool:
        """Whether a node is a convolution with one tap."""
        found = convolution(self.network, node) if self._ours(node) and kind(node) == "conv" else None
        walk = None if found is None else found.geometry
        return walk is not None and walk.taps == 1 and not any(walk.padding) and set(walk.stride) == {1}

    def _ours(self, node: object) -> bool:
        """Whether a node is a layer that may be changed."""
        return isinstance(node, Node) and is_weighted(node) and free(node) and node not in self.left

    def _gains(
        self,
        one: Node,
        other: Node,
        result: Convolution | None,
        parts: list[tuple[Convolution, Node]],
        end: Node,
    ) -> bool:
        """Whether a merged layer is exact, and costs no more than its parts; if not, remember why."""
        if result is None:
            self.reasons[one, other] = "inexact or with more weights"
            return False
        before = sum(_nonzero(part.weight) for part, _ in parts)
        macs = sum(part.weight.numel() * self._positions(node) for part, node in parts)
        after = result.weight.numel() * self._positions(end if not result.geometry.transposed else _up(one, other))
        grows = _nonzero(result.weight) > self.most_weights * before
        if grows or after > macs or (_nonzero(result.weight) > before and after == macs):
            self.reasons[one, other] = "with more weights or multiplications"
            return False
        return True

    def _positions(self, node: Node) -> int:
        """Return how often a layer uses each of its weights."""
        if kind(node) == "linear":
            return prod(self.sizes[node][:-1])
        place = node.args[0] if kind(node) == "conv_transpose" else node
        assert isinstance(place, Node)
        return prod(self.sizes[place][2:])

    def _settle(self, kept: Node, gone: Node | None, result: Convolution, what: str) -> None:
        if gone is not None:
            self.network.graph_module.graph.erase_node(gone)
        set_convolution(self.network, kept, result)
        self.merged[what] += 1


def _up(one: Node, other: Node) -> Node:
    return one if kind(one) == "conv_transpose" else other


def _weights(parts: list[tuple[Convolution, Node]]) -> int:
    return sum(part.weight.numel() for part, _ in parts)


def _nonzero(weight: Tensor) -> int:
    return int(weight.count_nonzero())


def _sizes(network: Network) -> dict[Node, tuple[int, ...]]:
    """Return the sizes of all tensors that flow, for one input."""
    sizes: dict[Node, tuple[int, ...]] = {}

    def look(node: Node, value: object) -> None:
        if isinstance(value, Tensor):
            sizes[node] = tuple(value.shape)

    Observed(network, list(network.graph_module.graph.nodes), look)(network.blank())
    return sizes
