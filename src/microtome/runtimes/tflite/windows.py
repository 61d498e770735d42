"""What looks at windows of an image or a volume: pools, means, interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from microtome.graph.operators import kind
from microtome.graph.watching.moments import named_arguments, spread
from microtome.runtimes.tflite.layers import SAME, VALID
from microtome.runtimes.tflite.writer import Write, Writer, axis_of, first_input, moved

LOWEST = -3.0e38


def pool(w: Writer, node: Node) -> None:
    """Write a max or average pool over one to three axes."""
    x, named = first_input(node), named_arguments(node)
    dims = len(w.shape(node)) - 2
    largest = kind(node) == "max_pool"
    kernel = spread(named["kernel_size"], dims)
    stride = spread(named["stride"], dims) if named["stride"] else kernel
    padding, dilation = spread(named["padding"], dims), spread(named.get("dilation", 1), dims)
    if any(d > 1 for d in dilation) or named.get("divisor_override"):
        raise w.refusal(node, "a pool with gaps or a divisor of its own has no form in TensorFlow Lite")
    if not largest and any(padding) and named["count_include_pad"]:
        raise w.refusal(node, "an average pool that counts its padding has no form in TensorFlow Lite")
    tensor = w.read(x, last=True)
    sizes, out = w.shape(x)[2:], w.shape(node)[2:]
    pads = [
        (p, max((o - 1) * s + k - size - p, 0))
        for p, o, s, k, size in zip(padding, out, stride, kernel, sizes, strict=True)
    ]
    same = all(
        o == -(-size // s) and p == max((o - 1) * s + k - size, 0) // 2
        for p, o, s, k, size in zip(padding, out, stride, kernel, sizes, strict=True)
    )
    if any(any(pair) for pair in pads) and (not same or dims == 3):
        if not largest:
            raise w.refusal(node, "an average pool with this padding has no form in TensorFlow Lite")
        tensor, same = _around(w, tensor, pads, node), False
    planes, name = tensor, w.name(node)
    channels = w.shape(node)[1]
    if dims == 1:
        planes = w.reshaped(tensor, (1, 1, w.model.shape(tensor)[1], channels), f"{name}/row")
        kernel, stride = (1, *kernel), (1, *stride)
    if dims == 3:
        depth, *rest = w.model.shape(tensor)[1:]
        planes = w.reshaped(tensor, (depth, *rest), f"{name}/planes")
    code = "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D"
    flat = (w.model.shape(planes)[0], *((1,) if dims == 1 else ()), *out[-2:], channels)
    output = w.like(planes, name, flat)
    options = {"strideH": stride[-2], "strideW": stride[-1], "filterHeight": kernel[-2], "filterWidth": kernel[-1]}
    found = w.model.operator(
        code, [planes], output, padding=SAME if same else VALID, fusedActivationFunction=0, **options
    )
    if dims == 3:
        found = _along_depth(w, found, node, kernel[0], stride[0])
    w.put(node, w.reshaped(found, moved(w.shape(node)), f"{name}/whole"), last=True)


def _around(w: Writer, tensor: int, pads: Sequence[tuple[int, int]], node: Node) -> int:
    """Return a tensor (N, *S, C) with the least of all values around it."""
    around = [(0, 0), *pads, (0, 0)]
    shape = [size + sum(pair) for size, pair in zip(w.model.shape(tensor), around, strict=True)]
    grid = w.model.grid(tensor)
    least = np.array(-128, np.int8) if grid is not None else np.array(LOWEST, np.float32)
    value = w.model.constant("least", least, grid)
    output = w.like(tensor, f"{w.name(node)}/padded", shape)
    return w.model.operator("PADV2", [tensor, w.ints(around), value], output)


def _along_depth(w: Writer, planes: int, node: Node, kernel: int, stride: int) -> int:
    """Return the largest of the slices that a 3-D pool covers; of averages only where it covers each slice once."""
    depth, *rest = w.model.shape(planes)
    out, name = w.shape(node)[2], w.name(node)
    volume = w.reshaped(planes, (1, depth, *rest), f"{name}/slices")
    if kind(node) != "max_pool":
        if kernel != stride:
            raise w.refusal(node, "a 3-D average pool that overlaps itself is not written")
        cut = w.sliced(volume, 1, 0, out * kernel, 1, f"{name}/cut")
        flat = w.reshaped(cut, (out, kernel, rest[0] * rest[1] * rest[2], 1), f"{name}/pairs")
        made = w.like(flat, f"{name}/means", (out, 1, rest[0] * rest[1] * rest[2], 1))
        options = {"strideH": kernel, "strideW": 1, "filterHeight": kernel, "filterWidth": 1}
        return w.model.operator("AVERAGE_POOL_2D", [flat], made, padding=VALID, fusedActivationFunction=0, **options)
    found = None
    for tap in range(kernel):
        part = w.sliced(volume, 1, tap, tap + (out - 1) * stride + 1, stride, f"{name}/slice")
        if found is None:
            found = part
        else:
            output = w.like(part, f"{name}/largest", w.model.shape(part))
            found = w.model.operator("MAXIMUM", [found, part], output)
    assert found is not None
    return found


def mean(w: Writer, node: Node) -> None:
    """Write a mean over some axes, or an adaptive average pool to one value per channel."""
    x, rank = first_input(node), len(w.shape(first_input(node)))
    named = named_arguments(node)
    if kind(node) == "avg_pool":
        sizes = [int(size) for size in spread(named["output_size"], rank - 2)]
        if any(size != 1 for size in sizes):
            _adaptive(w, node, sizes)
            return
        axes, keep = list(range(2, rank)), True
    else:
        axes = [int(axis) % rank for axis in (named["dim"] or range(rank))]
        keep = bool(named.get("keepdim"))
    grid = w.wanted(node)
    integer = w.integer(x) and grid is not None
    last = rank >= 3 and (w.is_last(x) or axes == list(range(2, rank)))
    tensor = w.read(x, last=last, integer=integer)
    stored = sorted(axis_of(axis, rank, last=last) for axis in axes)
    shape = [1 if axis in stored else size for axis, size in enumerate(w.model.shape(tensor))]
    output = w.output(node, last=False, grid=grid if integer else None, shape=shape)
    found = w.model.operator("MEAN", [tensor, w.ints(stored)], output, keepDims=True)
    if keep:
        w.put(node, found, last=last)
        return
    if last:
        found = w.transposed(found, [0, rank - 1, *range(1, rank - 1)], f"{w.name(node)}/first")
    w.put(node, w.reshaped(found, w.shape(node), f"{w.name(node)}/flat"))


def _adaptive(w: Writer, node: Node, sizes: Sequence[int]) -> None:
    """Write an adaptive average pool whose windows are all alike."""
    x = first_input(node)
    before = w.shape(x)[2:]
    if len(sizes) != 2 or any(size % out for size, out in zip(before, sizes, strict=True)):
        raise w.refusal(node, "an adaptive average pool with windows of several sizes has no form in TensorFlow Lite")
    kernel = [size // out for size, out in zip(before, sizes, strict=True)]
    tensor = w.read(x, last=True)
    output = w.like(tensor, w.name(node), moved(w.shape(node)))
    options = {"strideH": kernel[0], "strideW": kernel[1], "filterHeight": kernel[0], "filterWidth": kernel[1]}
    found = w.model.operator("AVERAGE_POOL_2D", [tensor], output, padding=VALID, fusedActivationFunction=0, **options)
    w.put(node, found, last=True)


def average(w: Writer, node: Node) -> None:
    """Write an average pool, with windows or adaptive."""
    (mean if "output_size" in named_arguments(node) else pool)(w, node)


def upsample(code: str) -> Write:
    """Return what writes an interpolation over two or three axes: of three, first along the two inner ones."""

    def write(w: Writer, node: Node) -> None:
        x, named = first_input(node), named_arguments(node)
        corners = bool(named.get("align_corners"))
        out, name, channels = w.shape(node)[2:], w.name(node), w.shape(node)[1]
        tensor = w.read(x, last=True)
        if len(out) == 1:
            row = w.reshaped(tensor, (1, 1, w.shape(x)[2], channels), f"{name}/row")
            tensor = _resized(w, row, (1, *out), code, name, corners=corners)
        elif len(out) == 2:
            tensor = _resized(w, tensor, out, code, name, corners=corners)
        else:
            _, depth, height, width, _ = w.model.shape(tensor)
            planes = w.reshaped(tensor, (depth, height, width, channels), f"{name}/planes")
            planes = _resized(w, planes, out[1:], code, name, corners=corners)
            flat = w.reshaped(planes, (1, depth, out[1] * out[2], channels), f"{name}/flat")
            tensor = _resized(w, flat, (out[0], out[1] * out[2]), code, name, corners=corners)
        w.put(node, w.reshaped(tensor, moved(w.shape(node)), f"{name}/whole"), last=True)

    return write


def _resized(w: Writer, tensor: int, size: Sequence[int], code: str, name: str, *, corners: bool) -> int:
    count, *_, channels = w.model.shape(tensor)
    if list(w.model.shape(tensor)[1:3]) == list(size):
        return tensor
    output = w.like(tensor, name, (count, *size, channels))
    options = {"alignCorners": corners, "halfPixelCenters": code == "RESIZE_BILINEAR" and not corners}
    return w.model.operator(code, [tensor, w.ints(list(size))], output, **options)
