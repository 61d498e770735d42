"""Transposed convolutions as convolutions on the small grid, whose channels are then laid out in space."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, groups, kind
from microtome.graph.rewriting.weights import give_weight

LANES = 16  # output channels that a vector register of 512 bits holds: fewer cost as much


def sub_pixel(network: Network) -> Network:
    """Return the network with those transposed convolutions rewritten that waste most of their vector lanes.

    A transposed convolution of stride s gives s^d output pixels per input pixel, each from few of the kernel's taps. A
    convolution with s^d times as many output channels computes them side by side (Shi et al., CVPR 2016, "efficient
    sub-pixel convolution"; the same sums, in another order); then channels become space. This takes more taps, but
    fills the lanes where there are few output channels, as behind the last upsampling of a U-Net.

    Quantizers stay: every phase has its output channel's scale.
    """
    plans = {n: p for n in network.graph_module.graph.nodes if (p := plan_of(n)) is not None and p.pays}
    if not plans:
        return network
    names = [node.name for node in plans]
    network = network.copy()
    module = network.graph_module
    for node in [n for n in module.graph.nodes if n.name in names]:
        plan = plan_of(node)
        assert plan is not None
        _rewrite(network, node, plan)
    edit.finish(module)
    return network


@dataclass(frozen=True)
class UpPlan:
    """One axis of a transposed convolution whose output is exactly `stride` times as large, the same for all axes.

    `first` and `last` are the least and the greatest offset of an input pixel from the output's own. `columns_first`
    tells the order of the channels on the small grid: an output's pixels side by side as `pixel_shuffle` has them, or
    the left column's channels before the right one's, which is laid out sooner where planes are written.
    """

    dims: int
    kernel: int
    stride: int
    padding: int
    channels: int
    first: int
    last: int
    columns_first: bool

    @property
    def taps(self) -> int:
        """Of the convolution's kernel."""
        return self.last - self.first + 1

    @property
    def pays(self) -> bool:
        """Whether the kernel overlaps itself, and there are fewer multiplications with whole registers than before."""
        before, after = self.costs
        return self.kernel > self.stride and after < before

    @property
    def costs(self) -> tuple[int, int]:
        """Multiplications with whole registers, per input pixel and channel, before and after."""
        before: int = self.kernel**self.dims * math.ceil(self.channels / LANES)
        after: int = self.taps**self.dims * math.ceil(self.channels * self.stride**self.dims / LANES)
        return before, after


def plan_of(node: Node) -> UpPlan | None:
    """Return how a node would be rewritten; None if it is nothing for this form."""
    if kind(node) != "conv_transpose" or node.target is aten.convolution.default or groups(node) != 1:
        return None
    source = constant_source(node.args[1])
    if source is None or source.meta["val"].ndim < 4:
        return None
    shape = source.meta["val"].shape
    dims = len(shape) - 2
    stride, padding, extra, dilation = (
        _same(node, position, name, default, dims)
        for position, name, default in (
            (3, "stride", 1),
            (4, "padding", 0),
            (5, "output_padding", 0),
            (7, "dilation", 1),
        )
    )
    kernel = int(shape[2])
    if None in (stride, padding, extra) or dilation != 1 or stride == 1 or any(int(k) != kernel for k in shape[2:]):
        return None
    assert stride is not None
    assert padding is not None
    assert extra is not None
    if kernel + extra != stride + 2 * padding:  # the output is not exactly `stride` times as large
        return None
    first = min(math.ceil((r + padding - kernel + 1) / stride) for r in range(stride))
    last = max((r + padding) // stride for r in range(stride))
    return UpPlan(dims, kernel, stride, padding, int(shape[1]), first, last, columns_first=dims == 3)


def _same(node: Node, position: int, name: str, default: int, dims: int) -> int | None:
    """Return an argument that has one value for all axes; None if they differ."""
    value: Any = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    values = {int(v) for v in ([value] if isinstance(value, int) else list(value) or [default])}
    return values.pop() if len(values) == 1 else None


def _rewrite(network: Network, node: Node, plan: UpPlan) -> None:
    plan = for_readers(plan, node.users)
    wide = widened(network, node, plan)
    with network.graph_module.graph.inserting_before(node):
        result = laid_out(network.graph_module.graph, wide, plan, plan.channels)
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    network.graph_module.graph.erase_node(node)


def for_readers(plan: UpPlan, readers: Iterable[Node]) -> UpPlan:
    """Return the plan in the order that suits those that read what is laid out."""
    return replace(plan, columns_first=True) if any(reader.op == "output" for reader in readers) else plan


def widened(network: Network, node: Node, plan: UpPlan) -> Node:
    """Put before a transposed convolution the convolution that computes its output on the small grid, and return it.

    Its channels are those of `laid_out`. The node itself loses its weight to it, and must go.
    """
    graph = network.graph_module.graph
    source = constant_source(node.args[1])
    assert source is not None
    weight = _phases(network.tensor(str(source.target)), plan)
    give_weight(network, node, weight, sources(plan.channels, plan))
    before, after = max(0, -plan.first), max(0, plan.last)
    convolution = {2: aten.conv2d.default, 3: aten.conv3d.default}[plan.dims]
    with graph.inserting_before(node):
        value, padding = _unsigned(graph, node.args[0]), before
        if before != after:
            value, padding = _padded(graph, value, [before, after] * plan.dims), 0
        stride, dilation = [1] * plan.dims, [1] * plan.dims
        wide = graph.call_function(
            convolution,
            (
                value,
                node.args[1],
                node.args[2] if len(node.args) > 2 else None,
                stride,
                [padding] * plan.dims,
                dilation,
                1,
            ),
        )
    wide.meta.update(node.meta)
    wide.meta["val"] = on_small_grid(node, node, plan)
    return wide


def _unsigned(graph: Graph, value: Any) -> Any:
    """Return a value whose grid is signed on the same grid counted from 0, as convolutions read it.

    On CPUs with VNNI and without AMX, OpenVINO 2026.4 computes wrong values where signed integers that were joined
    reach a convolution.
    """
    if value.target is not aten.fake_quantize_per_tensor_affine.default or value.args[3] >= 0:
        return value
    read, scale, zero_point, low, high = value.args
    return graph.call_function(value.target, (read, scale, zero_point - low, 0, high - low))


def on_small_grid(node: Node, up: Node, plan: UpPlan) -> Tensor:
    """Return what a value behind a transposed convolution `up` is like on the small grid, as capture notes it."""
    large, small = node.meta["val"], up.args[0].meta["val"]  # type: ignore[union-attr]
    like: Tensor = large.new_empty([large.shape[0], large.shape[1] * plan.stride**plan.dims, *small.shape[2:]])
    return like


def _padded(graph: Graph, value: Any, widths: list[int]) -> Node:
    """Return a value with zeros around it, before its quantizer: OpenVINO errs where they come behind."""
    if kind(value) == "quantizer":
        padded = _padded(graph, value.args[0], widths)
        return graph.call_function(value.target, (padded, *value.args[1:]))
    return graph.call_function(aten.constant_pad_nd.default, (value, widths, 0.0))


def _phases(weight: Tensor, plan: UpPlan) -> Tensor:
    """Return the weight (Cin, Cout, *kernel) as that of the convolution, (Cout · s^d, Cin, *taps)."""
    dims, stride = plan.dims, plan.stride
    inputs, outputs = weight.shape[:2]
    result = weight.new_zeros(outputs, *[stride] * dims, inputs, *[plan.taps] * dims)
    for phase in itertools.product(range(stride), repeat=dims):
        for offset in itertools.product(range(plan.first, plan.last + 1), repeat=dims):
            tap = [r + plan.padding - stride * o for r, o in zip(phase, offset, strict=True)]
            if all(0 <= t < plan.kernel for t in tap):
                place: Any = (slice(None), *phase, slice(None), *(o - plan.first for o in offset))
                source: Any = (slice(None), slice(None), *tap)
                result[place] = weight[source].T
    return in_order(result, 0, plan)


def laid_out(graph: Graph, wide: Node, plan: UpPlan, channels: int) -> Node:
    """Lay (N, s^d · C, *S) out as (N, C, *(s · S)), where the graph inserts."""
    if not plan.columns_first:
        return graph.call_function(aten.pixel_shuffle.default, (wide, plan.stride))
    dims, stride = plan.dims, plan.stride
    sizes = [graph.call_function(aten.sym_size.int, (wide, axis)) for axis in (0, *range(2, dims + 2))]
    batch, *space = sizes
    large = [graph.call_function(operator.mul, (size, stride)) for size in space]
    # Channels last first: where they lie so already that is free, and so are the columns. The rest is moved once.
    last = graph.call_function(aten.permute.default, (wide, [0, *range(2, dims + 2), 1]))
    parts: list[Any] = [batch, *space[:-1], large[-1], channels, *[stride] * (dims - 1)]
    split = graph.call_function(aten.reshape.default, (last, parts))
    rows = itertools.chain.from_iterable((1 + axis, 2 + dims + axis) for axis in range(dims - 1))
    turned = graph.call_function(aten.permute.default, (split, [0, dims + 1, *rows, dims]))
    return graph.call_function(aten.reshape.default, (turned, [batch, channels, *large]))


def sources(channels: int, plan: UpPlan) -> Tensor:
    """Return for each channel on the small grid the one on the large grid that it is of."""
    each = torch.arange(channels)
    if plan.columns_first:
        return each.repeat_interleave(plan.stride ** (plan.dims - 1)).repeat(plan.stride)
    return each.repeat_interleave(plan.stride**plan.dims)


def in_order(values: Tensor, first: int, plan: UpPlan) -> Tensor:
    """Return (…, C, *phases, …), where C is axis `first`, as (…, s^d · C, …) in the order of the plan."""
    turned = values.movedim(first + plan.dims, first) if plan.columns_first else values
    return turned.flatten(first, first + plan.dims)
