"""Strided convolutions over a network's input, whose few channels leave most of the integer units idle."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, groups, kind
from microtome.graph.rewriting.column_operators import BLOCKS
from microtome.graph.rewriting.narrow_convs import each
from microtome.graph.rewriting.weights import give_weight

FEW = 4  # channels of an image: the integer units multiply four at a time, and many more where there are more


def blocks_of_input(network: Network) -> Network:
    """Return the network with its first strided convolutions, if in integers, over blocks of the image.

    A block of s^d pixels becomes one pixel with s^d times as many channels; a convolution with stride s over the image
    is then one with stride 1 over blocks, whose kernel has zeros where nothing was read. (What TPUs do with the first
    layer of a ResNet: Ying et al. 2018, "Image Classification at Supercomputer Scale", section 3.4.)

    Only where an output pixel belongs to each block, the last one too where it is not full.
    """
    found = [stem for node in network.graph_module.graph.nodes if (stem := _stem(node)) is not None]
    stems = [stem for stem in found if stem.fits(network)]
    if not stems:
        return network
    names = {stem.node.name for stem in stems}
    network = network.copy()
    graph = network.graph_module.graph
    for value, group in itertools.groupby(
        [stem for node in graph.nodes if node.name in names and (stem := _stem(node)) is not None],
        key=lambda stem: (stem.quantizer, stem.stride, stem.before, stem.behind),
    ):
        _rewrite(network, value[0], list(group))
    edit.finish(network.graph_module)
    return network


@dataclass(frozen=True)
class _Stem:
    """A convolution over the input: one axis of it, the same for all.

    Attributes:
        node: the convolution.
        quantizer: of the image, which it reads.
        stride: of the convolution.
        padding: likewise.
        before: how many blocks before its own an output pixel reads.
        behind: how many behind it.
        reaches: whether a block of which only the first pixels are there still gives an output pixel.
    """

    node: Node
    quantizer: Node
    stride: int
    padding: int
    before: int
    behind: int
    reaches: bool

    def fits(self, network: Network) -> bool:
        """Whether the last block gives a pixel too if it is not full, or is full in all images."""
        port = network.inputs[0]
        full = not any(port.dynamic[2:]) and not any(size % self.stride for size in port.shape[1:])
        return self.reaches or full


def _stem(node: Node) -> _Stem | None:
    """Return what is known of a node; None if it is no convolution of this form."""
    if kind(node) != "conv" or node.target is aten.convolution.default or groups(node) != 1 or node.kwargs:
        return None
    source, quantizer = constant_source(node.args[1]), node.args[0]
    if source is None or not isinstance(quantizer, Node) or isinstance(node.args[4] if len(node.args) > 4 else 0, str):
        return None
    if quantizer.target is not aten.fake_quantize_per_tensor_affine.default or kind(node.args[1]) != "quantizer":  # type: ignore[arg-type]
        return None
    image = quantizer.args[0]
    shape = source.meta["val"].shape
    dims, kernel = len(shape) - 2, int(shape[2])
    strides, paddings, dilations = (
        each(node, place, name, default, dims) for place, name, default in ((3, "", 1), (4, "", 0), (5, "", 1))
    )
    stride, padding = strides[0], paddings[0]
    uniform = all(len(set(one)) == 1 for one in (strides, paddings, shape[2:])) and set(dilations) == {1}
    if image.op != "placeholder" or dims < 2 or int(shape[1]) > FEW or not uniform or stride < 2:  # type: ignore[union-attr]
        return None
    if not kernel - stride <= 2 * padding < kernel:  # or the output has not one pixel per block
        return None
    before, behind = -(-padding // stride), (kernel - 1 - padding) // stride
    return _Stem(node, quantizer, stride, padding, before, behind, reaches=2 * padding >= kernel - 1)


def _rewrite(network: Network, quantizer: Node, stems: Sequence[_Stem]) -> None:
    """Let convolutions with the same stride and padding read blocks. Edits in place."""
    graph, first = network.graph_module.graph, stems[0]
    image = quantizer.args[0]
    assert isinstance(image, Node)
    dims = image.meta["val"].ndim - 2
    with graph.inserting_before(first.node):
        blocks, padding = _blocks(graph, image, first.stride), first.before
        if first.before != first.behind:
            widths = [first.before, first.behind] * dims
            blocks, padding = graph.call_function(aten.constant_pad_nd.default, (blocks, widths, 0.0)), 0
        integers = graph.call_function(quantizer.target, (blocks, *quantizer.args[1:]))  # type: ignore[arg-type]
    for stem in stems:
        source = constant_source(stem.node.args[1])
        assert source is not None
        weight = network.tensor(str(source.target))
        give_weight(network, stem.node, _wide(weight, stem), torch.arange(len(weight)))
        once = [1] * dims
        bias = stem.node.args[2] if len(stem.node.args) > 2 else None
        stem.node.args = (integers, stem.node.args[1], bias, once, [padding] * dims, once, 1)


def _blocks(graph: Graph, image: Node, stride: int) -> Node:
    """Lay an image out as blocks, where the graph inserts."""
    small = []
    for axis in range(2, image.meta["val"].ndim):
        size = graph.call_function(aten.sym_size.int, (image, axis))
        more = graph.call_function(operator.add, (size, stride - 1))
        small.append(graph.call_function(operator.floordiv, (more, stride)))
    return graph.call_function(BLOCKS, (image, stride, small))


def _wide(weight: Tensor, stem: _Stem) -> Tensor:
    """Return the weight (O, C, *kernel) as that over blocks, (O, C · s^d, *taps)."""
    outputs, inputs, *kernel = weight.shape
    dims, stride, taps = len(kernel), stem.stride, stem.before + 1 + stem.behind
    wide = weight.new_zeros(outputs, inputs, *[stride] * dims, *[taps] * dims)
    for tap in itertools.product(*map(range, kernel)):
        places = [t - stem.padding for t in tap]
        inner = [place % stride for place in places]
        block = [place // stride + stem.before for place in places]
        where: Any = (slice(None), slice(None), *inner, *block)
        what: Any = (slice(None), slice(None), *tap)
        wide[where] = weight[what]
    return wide.reshape(outputs, inputs * stride**dims, *[taps] * dims)
