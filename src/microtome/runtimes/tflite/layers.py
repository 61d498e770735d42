"""Convolutions, transposed convolutions and linear layers.

TensorFlow Lite has integer kernels for images, none for volumes. A 3-D convolution is a 2-D convolution over slices
here: of each slice, those that its kernel covers stand side by side as channels. The sum over all of them is one sum in
32 bits, so that the integers are those of a 3-D convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from microtome.graph.network import Layer
from microtome.graph.operators import constant_source, kind, output_axis
from microtome.graph.quantizers import weight_quantizer
from microtome.graph.watching.moments import geometry, named_arguments
from microtome.runtimes.tflite.model import Grid
from microtome.runtimes.tflite.writer import Writer, first_input
from microtome.types import Array

SAME, VALID = 0, 1  # Padding of the schema


@dataclass(frozen=True)
class _Weight:
    """A layer's weight and bias.

    Attributes:
        values: of the weight, float32: (O, I, *S), also of transposed convolutions.
        scale: of its integers by output channel, (O,); None where it is in float.
        bias: (O,).
        integer: whether the layer runs in integers: input, weight and output have grids.
        name: of the layer.
    """

    values: Array
    scale: Array | None
    bias: Array
    integer: bool
    name: str


def linear(w: Writer, node: Node) -> None:
    """Write a linear layer over the last axis."""
    activation, end = w.fused(node)
    x, grid = first_input(node), w.wanted(end)
    weight = _weight(w, node, x, grid)
    tensor = w.read(x, integer=weight.integer)
    inputs = [tensor, *_constants(w, weight, weight.values, 0, w.model.grid(tensor))]
    output = w.output(node, last=False, grid=grid if weight.integer else None)
    options = {"fusedActivationFunction": activation, "keepNumDims": len(w.shape(node)) > 2}
    w.put(end, w.model.operator("FULLY_CONNECTED", inputs, output, **options))


def convolution(w: Writer, node: Node) -> None:
    """Write a convolution over one, two or three axes."""
    activation, end = w.fused(node)
    x, grid = first_input(node), w.wanted(end)
    weight, walk = _weight(w, node, x, grid), geometry(node)
    named = named_arguments(node)
    sizes = w.shape(x)[2:]
    pads = [
        (before, d * (k - 1) - before if named["padding"] == "same" else before)
        for before, d, k in zip(walk.padding, walk.dilation, walk.kernel, strict=True)
    ]
    tensor = w.read(x, last=True, integer=weight.integer)
    if len(walk.kernel) == 1:
        tensor = w.reshaped(tensor, (1, 1, sizes[0], w.shape(x)[1]), f"{weight.name}/row")
        weight = _with(weight, weight.values[:, :, None])
        plane = _Plane((1, *walk.kernel), (1, *walk.stride), (1, *walk.dilation), [(0, 0), *pads], walk.groups)
    elif len(walk.kernel) == 3:
        if walk.groups > 1:
            raise w.refusal(node, "a grouped 3-D convolution has no form in TensorFlow Lite")
        tensor, weight = _slices(w, tensor, weight, walk.stride[0], walk.dilation[0], pads[0])
        plane = _Plane(walk.kernel[1:], walk.stride[1:], walk.dilation[1:], pads[1:], 1)
    else:
        plane = _Plane(walk.kernel, walk.stride, walk.dilation, pads, walk.groups)
    found = _convolved(w, tensor, weight, plane, grid if weight.integer else None, activation)
    stored = (1, *w.shape(node)[2:], w.shape(node)[1])
    w.put(end, w.reshaped(found, stored, f"{weight.name}/volume"), last=True)


def transposed_convolution(w: Writer, node: Node) -> None:
    """Write a transposed convolution over two or three axes."""
    activation, end = w.fused(node)
    x, grid = first_input(node), w.wanted(end)
    weight, walk = _weight(w, node, x, grid), geometry(node)
    rank = len(walk.kernel)
    if walk.groups > 1 or any(d > 1 for d in walk.dilation) or rank == 1 or walk.kernel[0] < walk.stride[0]:
        raise w.refusal(node, "a grouped, dilated, 1-D or gappy transposed convolution has no form in TensorFlow Lite")
    tensor, sizes = w.read(x, last=True, integer=weight.integer), w.shape(node)[2:]
    chosen = grid if weight.integer else None
    plane = _Up(walk.kernel[-2:], walk.stride[-2:], walk.padding[-2:], sizes[-2:])
    if rank == 2:
        found = _transposed(w, tensor, weight, plane, chosen, activation)
    else:
        found = _phases(w, tensor, weight, plane, chosen, (walk.stride[0], walk.padding[0], sizes[0]))
        if activation:
            raise w.refusal(node, "a 3-D transposed convolution with a clamp behind it is not written")
    w.put(end, found, last=True)


@dataclass(frozen=True)
class _Plane:
    """How a 2-D convolution walks; `pads` are zeros before and behind each axis."""

    kernel: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    pads: Sequence[tuple[int, int]]
    groups: int


@dataclass(frozen=True)
class _Up:
    """How a 2-D transposed convolution walks; `size` is that of its output."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    size: Sequence[int]


def padded(w: Writer, tensor: int, pads: Sequence[tuple[int, int]], name: str) -> int:
    """Return a tensor (N, *S, C) with zeros around its spatial axes."""
    if not any(any(pair) for pair in pads):
        return tensor
    around = [(0, 0), *pads, (0, 0)]
    shape = [size + sum(pair) for size, pair in zip(w.model.shape(tensor), around, strict=True)]
    return w.model.operator("PAD", [tensor, w.ints(around)], w.like(tensor, f"{name}/padded", shape))


def walked(w: Writer, tensor: int, plane: _Plane, name: str) -> tuple[int, int, tuple[int, int]]:
    """Return a tensor (N, H, W, C) with the zeros that its padding asks for, the padding, and the output's size."""
    pads, sizes, same = [], [], []
    for size, k, s, d, (before, behind) in zip(
        w.model.shape(tensor)[1:3], plane.kernel, plane.stride, plane.dilation, plane.pads, strict=True
    ):
        out = (size + before + behind - d * (k - 1) - 1) // s + 1
        missing = max((out - 1) * s + d * (k - 1) + 1 - size, 0)
        same.append(out == -(-size // s) and before == missing // 2)
        pads.append((before, max((out - 1) * s + d * (k - 1) + 1 - size - before, 0)))
        sizes.append(out)
    if all(same) or not any(any(pair) for pair in pads):
        return tensor, SAME if all(same) else VALID, (sizes[0], sizes[1])
    return padded(w, tensor, pads, name), VALID, (sizes[0], sizes[1])


def _convolved(w: Writer, tensor: int, weight: _Weight, plane: _Plane, grid: Grid | None, activation: int) -> int:
    """Write a 2-D convolution of a tensor (N, H, W, C), and return its output."""
    tensor, padding, size = walked(w, tensor, plane, weight.name)
    count, _, _, channels = w.model.shape(tensor)
    outputs, inner = weight.values.shape[:2]
    options = {
        **{"padding": padding, "fusedActivationFunction": activation},
        **{"strideH": plane.stride[0], "strideW": plane.stride[1]},
        **{"dilationHFactor": plane.dilation[0], "dilationWFactor": plane.dilation[1]},
    }
    output = w.model.tensor(weight.name, (count, *size, outputs), "float32" if grid is None else "int8", grid)
    own = w.model.grid(tensor)
    if inner == 1 and plane.groups == channels:
        arranged = weight.values.transpose(1, 2, 3, 0)
        inputs = [tensor, *_constants(w, weight, arranged, 3, own)]
        return w.model.operator("DEPTHWISE_CONV_2D", inputs, output, depthMultiplier=outputs // channels, **options)
    inputs = [tensor, *_constants(w, weight, weight.values.transpose(0, 2, 3, 1), 0, own)]
    return w.model.operator("CONV_2D", inputs, output, **options)


def _slices(
    w: Writer, tensor: int, weight: _Weight, stride: int, dilation: int, pads: tuple[int, int]
) -> tuple[int, _Weight]:
    """Return slices (D, H, W, K · C) of a tensor (1, D, H, W, C), each with those that a kernel covers, and its weight.

    The weight (O, C, K, h, w) becomes (O, K · C, h, w).
    """
    taps = weight.values.shape[2]
    tensor = padded(w, tensor, [pads, (0, 0), (0, 0)], weight.name)
    _, depth, height, width, channels = w.model.shape(tensor)
    out = (depth - dilation * (taps - 1) - 1) // stride + 1
    parts = []
    for tap in range(taps):
        start = tap * dilation
        stop = start + (out - 1) * stride + 1
        parts.append(w.sliced(tensor, 1, start, stop, stride, f"{weight.name}/slices"))
    side = w.joined(parts, 4, f"{weight.name}/side")
    values = weight.values.transpose(0, 2, 1, 3, 4)
    values = values.reshape(len(values), -1, *values.shape[3:])
    return w.reshaped(side, (out, height, width, taps * channels), f"{weight.name}/planes"), _with(weight, values)


def _transposed(w: Writer, tensor: int, weight: _Weight, up: _Up, grid: Grid | None, activation: int) -> int:
    """Write a 2-D transposed convolution of a tensor (N, H, W, C): without padding, and its border cut off."""
    count, *sizes, _ = w.model.shape(tensor)
    outputs = weight.values.shape[0]
    needed = [pad + size for pad, size in zip(up.padding, up.size, strict=True)]
    whole = [
        max((size - 1) * s + k, need) for size, s, k, need in zip(sizes, up.stride, up.kernel, needed, strict=True)
    ]
    output = w.model.tensor(weight.name, (count, *whole, outputs), "float32" if grid is None else "int8", grid)
    kernel, bias = _constants(w, weight, weight.values.transpose(0, 2, 3, 1), 0, w.model.grid(tensor))
    options = {"padding": VALID, "strideH": up.stride[0], "strideW": up.stride[1]}
    inputs = [w.ints([count, *whole, outputs]), kernel, tensor, bias]
    found = w.model.operator("TRANSPOSE_CONV", inputs, output, fusedActivationFunction=activation, **options)
    for axis, (pad, size) in enumerate(zip(up.padding, up.size, strict=True)):
        found = w.sliced(found, 1 + axis, pad, pad + size, 1, f"{weight.name}/cut")
    return found


def _phases(w: Writer, tensor: int, weight: _Weight, up: _Up, grid: Grid | None, depth: tuple[int, int, int]) -> int:
    """Write a 3-D transposed convolution of a tensor (1, D, H, W, C): one 2-D for each phase of the stride along D.

    Slice d of the output is the sum over taps k of slice i of the input with i · stride + k - padding = d: those with
    the same d modulo the stride have the same taps.
    """
    stride, padding, size = depth
    _, slices, height, width, channels = w.model.shape(tensor)
    taps = weight.values.shape[2]
    rows: list[int] = []
    per_phase = -(-size // stride)
    outputs = weight.values.shape[0]
    for phase in range(stride):
        own = [k for k in range(taps) if (k - padding - phase) % stride == 0]
        shifts = [(phase + padding - k) // stride for k in own]  # of the input, for the first slice of the phase
        parts = []
        for shift in shifts:
            before, behind = max(0, -shift), max(0, shift + per_phase - slices)
            moved = padded(w, tensor, [(before, behind), (0, 0), (0, 0)], f"{weight.name}/{phase}")
            start = shift + before
            parts.append(w.sliced(moved, 1, start, start + per_phase, 1, f"{weight.name}/{phase}/slices"))
        side = w.joined(parts, 4, f"{weight.name}/{phase}/side")
        flat = w.reshaped(side, (per_phase, height, width, len(own) * channels), f"{weight.name}/{phase}/planes")
        values = weight.values[:, :, own].transpose(0, 2, 1, 3, 4)
        values = values.reshape(len(values), -1, *values.shape[3:])
        found = _transposed(w, flat, _with(weight, values), up, grid, 0)
        rows.append(w.reshaped(found, (per_phase, 1, up.size[0] * up.size[1] * outputs), f"{weight.name}/row"))
    woven = w.joined(rows, 1, f"{weight.name}/woven")
    whole = w.reshaped(woven, (1, per_phase * stride, *up.size, outputs), f"{weight.name}/whole")
    return w.sliced(whole, 1, 0, size, 1, f"{weight.name}/cut")


def _weight(w: Writer, node: Node, x: Node, grid: Grid | None) -> _Weight:
    """Return what a layer multiplies with, and whether in integers."""
    layer = Layer(w.name(node), kind(node), node)
    values = w.network.tensor(str(layer.weight.target)).detach().cpu().numpy()
    qparams, scale = weight_quantizer(w.network, layer), None
    outputs = values.shape[output_axis(node)]
    if qparams is not None:
        if qparams.qtype.bits > 8 or not qparams.qtype.signed or bool(qparams.zero_point.any()):
            raise w.refusal(node, "a weight that is no symmetric grid of 8 bits has no form in TensorFlow Lite")
        scale = np.broadcast_to(qparams.scale.detach().cpu().numpy().astype(np.float32), (outputs,))
    source = constant_source(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else None
    bias = np.zeros(outputs, np.float32)
    if source is not None:
        bias = w.network.tensor(str(source.target)).detach().cpu().numpy()
    if output_axis(node) == 1:
        values = values.swapaxes(0, 1)
    integer = w.integer(x) and scale is not None and grid is not None
    return _Weight(values, scale, bias, integer, w.name(node))


def _with(weight: _Weight, values: Array) -> _Weight:
    return _Weight(values, weight.scale, weight.bias, weight.integer, weight.name)


def _constants(w: Writer, weight: _Weight, arranged: Array, axis: int, own: Grid | None) -> tuple[int, int]:
    """Return the tensors of a weight in the order that a kernel wants, and of its bias.

    Args:
        w: the writer.
        weight: of the layer.
        arranged: its values.
        axis: of the output channels in them.
        own: grid of the input.
    """
    name = f"{weight.name}.weight"
    if weight.scale is None:
        return w.model.constant(name, arranged.astype(np.float32)), w.model.constant(f"{weight.name}.bias", weight.bias)
    shape = [1] * arranged.ndim
    shape[axis] = -1
    integers = np.clip(np.rint(arranged / weight.scale.reshape(shape)), -127, 127).astype(np.int8)
    grid = Grid(weight.scale, np.zeros(len(weight.scale), np.int64), axis)
    kernel = w.model.constant(name, integers, grid)
    if not weight.integer or own is None:
        real = w.model.tensor(f"{name}/float", integers.shape, "float32")
        kernel = w.model.operator("DEQUANTIZE", [kernel], real)
        return kernel, w.model.constant(f"{weight.name}.bias", weight.bias)
    scale = (own.scale * weight.scale).astype(np.float32)
    bias = np.clip(np.rint(weight.bias.astype(np.float64) / scale), -(2**31), 2**31 - 1).astype(np.int32)
    return kernel, w.model.constant(f"{weight.name}.bias", bias, Grid(scale, np.zeros(len(scale), np.int64), 0))
