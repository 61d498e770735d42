"""The end of a U-Net on the grid before its last upsampling, with the pixels of the large one as channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence, Set
from typing import Any

from torch import Tensor
from torch.fx import Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, groups, kind
from microtome.graph.rewriting.narrow_convs import each
from microtome.graph.rewriting.sub_pixel import (
    LANES,
    UpPlan,
    for_readers,
    in_order,
    laid_out,
    on_small_grid,
    plan_of,
    sources,
    widened,
)
from microtome.graph.rewriting.weights import give_weight, take_channels

BY_VALUE = frozenset({"relu", "clamp", "leaky_relu", "elu", "prelu", "batch_norm", "quantizer", "add"})
# In integers, multiplications of few channels cost little beside moving a large image about.
FEW, DEARER = 4, 3.0


def small_grid(network: Network) -> Network:
    """Return the network with narrow convolutions behind an upsampling computed on the grid before it.

    A transposed convolution with stride s can leave its output as s^d times as many channels on the small grid
    (`sub_pixel`). So can a convolution behind it: output pixel r of each block of s^d reads pixels of its own block and
    of the neighbouring ones, which are channels of the 3^d blocks around. The kernel has zeros where nothing is read;
    but 8 times 3 channels fill the registers that 3 leave empty, and only what leaves the network is laid out in space.
    What works value by value in between, quantizers included, works on the channels. The last convolution may write
    blocks that lie half a block before those that it reads, if nothing else reads them: it then reads fewer.
    """
    found = [(node.name, plan) for node in network.graph_module.graph.nodes if (plan := plan_of(node)) is not None]
    network_with, changed = network, False
    for name, plan in found:
        node = next((n for n in network_with.graph_module.graph.nodes if n.name == name), None)
        members = [] if node is None else _staying(node, plan)
        if members:
            if not changed:
                network_with, changed = network.copy(), True
                node = next(n for n in network_with.graph_module.graph.nodes if n.name == name)
                members = _staying(node, plan)
            _stay(network_with, members, plan)
    if changed:
        edit.finish(network_with.graph_module)
    return network_with


def _staying(up: Node, plan: UpPlan) -> list[Node]:
    """Return an upsampling and what may stay on the small grid behind it; nothing if no convolution gains by it."""
    before, after = plan.costs
    if after > (DEARER if plan.channels <= FEW else 1.0) * before:
        return []
    members = {up: plan.channels}
    node, last = up.next, None
    while node.op != "root":
        channels = _channels(node, members, plan)
        if channels is not None:
            members[node] = channels
            last = node if kind(node) == "conv" else last
        node = node.next
    if last is None:
        return []
    return list(members)


def _channels(node: Node, members: dict[Node, int], plan: UpPlan) -> int | None:
    """Return the channels of a node that may stay; None if it may not."""
    if node.op != "call_function":
        return None
    read = [value for value in node.all_input_nodes if not _is_constant(value)]
    if not read or any(value not in members for value in read) or node.kwargs:
        return None
    if kind(node) in BY_VALUE:
        if kind(node) == "quantizer" and node.target is not aten.fake_quantize_per_tensor_affine.default:
            return None
        if kind(node) == "add" and (len(read) + (read[0] is node.args[1]) < 2 or len(node.args) != 2):
            return None
        return members[read[0]]
    return _conv_channels(node, plan) if kind(node) == "conv" and read == [node.args[0]] else None


def _conv_channels(node: Node, plan: UpPlan) -> int | None:
    """Return the output channels of a convolution that may stay, and does not cost too much there; else None."""
    source = constant_source(node.args[1])
    if source is None or groups(node) != 1 or node.target is aten.convolution.default:
        return None
    outputs, inputs, *kernel = (int(size) for size in source.meta["val"].shape)
    if len(node.args) < 5 or isinstance(node.args[4], str):  # one tap without padding gains nothing
        return None
    walk = [each(node, place, name, default, plan.dims) for place, name, default in ARGUMENTS]
    same = [[1] * plan.dims, [(size - 1) // 2 for size in kernel], [1] * plan.dims]
    if len(kernel) != plan.dims or len(set(kernel)) > 1 or kernel[0] % 2 == 0 or walk != same:
        return None
    phases, blocks = plan.stride**plan.dims, len(_blocks(kernel[0], plan.stride)) ** plan.dims
    before = phases * math.prod(kernel) * math.ceil(outputs / LANES) * inputs
    after = blocks * math.ceil(outputs * phases / LANES) * inputs * phases
    moved_about = outputs <= FEW and all(isinstance(v, Node) and kind(v) == "quantizer" for v in node.args[:2])
    return outputs if after <= (DEARER if moved_about else 1.0) * before else None


ARGUMENTS = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))


def _blocks(kernel: int, stride: int, shift: int = 0) -> range:
    """Return the offsets of the blocks that a kernel reads, along one axis, if its own block is moved by `shift`."""
    first = -((kernel - 1) // 2) - shift
    return range(first // stride, (first + stride + kernel - 2) // stride + 1)


def _shift(kernel: int, stride: int) -> int:
    """Return by how many pixels an output's blocks lie before its input's, where they then read fewer blocks; else 0.

    A kernel of 3 at a stride of 2 reads four pixels for two: three blocks, or two whole ones.
    """
    shift = -((kernel - 1) // 2) % stride
    blocks = _blocks(kernel, stride, shift)
    return shift if len(blocks) < len(_blocks(kernel, stride)) and len(blocks) == -2 * blocks[0] else 0


def _is_last(node: Node, members: Set[Node]) -> bool:
    """Whether nothing that stays on the small grid reads a value, but for what works on it alone, value by value."""
    readers = [user for user in node.users if user in members]
    return all(
        kind(user) != "conv"
        and {value for value in user.all_input_nodes if value in members} == {node}
        and _is_last(user, members)
        for user in readers
    )


def _stay(network: Network, members: Sequence[Node], plan: UpPlan) -> None:
    """Compute the members on the small grid, and lay out what others read. Edits in place."""
    graph, inside = network.graph_module.graph, set(members)
    up, *others = members
    outside = {node: [user for user in node.users if user not in inside] for node in members}
    plan = for_readers(plan, itertools.chain.from_iterable(outside.values()))
    large = {node: node.meta["val"] for node in members}
    wide = widened(network, up, plan)
    up.replace_all_uses_with(wide, delete_user_cb=lambda user: user in inside)
    channels, shifts = {wide: plan.channels}, dict[Node, int]()
    for node in others:
        node.meta["val"] = on_small_grid(node, up, plan)
        channels[node] = next(channels[value] for value in node.all_input_nodes if value in channels)
        if kind(node) == "conv":
            source = constant_source(node.args[1])
            assert source is not None
            weight = network.tensor(str(source.target))
            channels[node] = int(weight.shape[0])
            shift = _shift(int(weight.shape[2]), plan.stride) if _is_last(node, inside) else 0
            if shift:
                shifts[node] = shift
            blocks = _blocks(int(weight.shape[2]), plan.stride, shift)
            give_weight(network, node, _wide(weight, plan, shift), sources(channels[node], plan))
            node.args = (*node.args[:4], [-blocks[0]] * plan.dims, *node.args[5:])
        else:
            shifts.update((node, shifts[value]) for value in node.all_input_nodes if value in shifts)
            take_channels(network, node, sources(channels[node], plan))
        if node in shifts:
            value = node.meta["val"]
            node.meta["val"] = value.new_empty([*value.shape[:2], *(size + 1 for size in value.shape[2:])])
    for node, readers in outside.items():
        value = wide if node is up else node
        if readers:
            with graph.inserting_before(value.next):
                result = laid_out(graph, value, plan, channels[value])
                if node in shifts:
                    more = [-shifts[node], shifts[node] - plan.stride] * plan.dims
                    result = graph.call_function(aten.constant_pad_nd.default, (result, more, 0.0))
            result.meta["val"] = large[node]
            for reader in readers:
                reader.replace_input_with(node, result)
    graph.erase_node(up)


def _wide(weight: Tensor, plan: UpPlan, shift: int) -> Tensor:
    """Return the weight (O, C, *kernel) as that over blocks, (s^d · O, s^d · C, *blocks)."""
    dims, stride = plan.dims, plan.stride
    outputs, inputs, kernel = weight.shape[:3]
    blocks = _blocks(int(kernel), stride, shift)
    reach = (int(kernel) - 1) // 2 + shift
    each_phase = [stride] * dims
    wide = weight.new_zeros(outputs, *each_phase, inputs, *each_phase, *[len(blocks)] * dims)
    for phase in itertools.product(range(stride), repeat=dims):
        for tap in itertools.product(range(int(kernel)), repeat=dims):
            places = [r + t - reach for r, t in zip(phase, tap, strict=True)]
            block = [place // stride - blocks[0] for place in places]
            inner = [place % stride for place in places]
            where: Any = (slice(None), *phase, slice(None), *inner, *block)
            what: Any = (slice(None), slice(None), *tap)
            wide[where] = weight[what]
    return in_order(in_order(wide, 1 + dims, plan), 0, plan)


def _is_constant(value: Node) -> bool:
    return value.op == "get_attr" or constant_source(value) is not None
