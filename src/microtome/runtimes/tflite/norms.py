"""Norms: in float, since integers have none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from microtome.graph.operators import kind
from microtome.graph.watching.moments import named_arguments
from microtome.runtimes.tflite.writer import Write, Writer, first_input, moved


def normalised(axes_of: Callable[[Writer, Node], tuple[list[int], tuple[int, ...], tuple[int, ...]]]) -> Write:
    """Return what writes a norm that looks at each image, in float: two means and a few products.

    Args:
        axes_of: (writer, node) → axes of the stored tensor that means go over, the shape in which they do, and that of
            scale and shift.
    """

    def write(w: Writer, node: Node) -> None:
        x, named, name = first_input(node), named_arguments(node), w.name(node)
        axes, shape, wide = axes_of(w, node)
        last = len(w.shape(x)) >= 3 and kind(node) != "layer_norm"
        tensor = w.reshaped(w.read(x, last=last, integer=False), shape, f"{name}/grouped")
        small = [1 if axis in axes else size for axis, size in enumerate(shape)]

        def real(what: str, size: Sequence[int]) -> int:
            return w.model.tensor(f"{name}/{what}", size, "float32")

        def constant(value: Any) -> int:
            return w.model.constant(name, np.array(value, np.float32))

        centre = w.model.operator("MEAN", [tensor, w.ints(axes)], real("mean", small), keepDims=True)
        moved_ = w.model.operator("SUB", [tensor, centre], real("centred", shape), fusedActivationFunction=0)
        square = w.model.operator("MUL", [moved_, moved_], real("square", shape), fusedActivationFunction=0)
        variance = w.model.operator("MEAN", [square, w.ints(axes)], real("variance", small), keepDims=True)
        safe = w.model.operator(
            "ADD", [variance, constant(named["eps"])], real("safe", small), fusedActivationFunction=0
        )
        scale = w.model.operator("RSQRT", [safe], real("scale", small))
        found = w.model.operator("MUL", [moved_, scale], real("scaled", shape), fusedActivationFunction=0)
        stored = moved(w.shape(node)) if last else w.shape(node)
        found = w.reshaped(found, stored, f"{name}/norm")
        for code, key in (("MUL", "weight"), ("ADD", "bias")):
            if named[key] is not None:
                value = w.array(named[key])
                assert value is not None
                inputs = [found, constant(value.reshape(wide))]
                found = w.model.operator(code, inputs, real(key, stored), fusedActivationFunction=0)
        w.put(node, found, last=last)

    return write


def _instance(w: Writer, node: Node) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    shape = moved(w.shape(node))
    return list(range(1, len(shape) - 1)), shape, (shape[-1],)


def _group(w: Writer, node: Node) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    _, channels, *space = w.shape(node)
    groups = int(named_arguments(node)["num_groups"])
    return [1, 3], (1, math.prod(space), groups, channels // groups), (channels,)


def _layer(w: Writer, node: Node) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    shape, normal = w.shape(node), tuple(int(n) for n in named_arguments(node)["normalized_shape"])
    return list(range(len(shape) - len(normal), len(shape))), shape, normal


def batch_norm(w: Writer, node: Node) -> None:
    """Write a norm with fixed statistics that no layer took in: a product and a sum per channel, in float."""
    x, named = first_input(node), named_arguments(node)
    weight, bias, centre, variance = (
        None if named[key] is None else w.array(named[key]) for key in ("weight", "bias", "running_mean", "running_var")
    )
    assert centre is not None
    assert variance is not None
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + named["eps"])
    shift = (0.0 if bias is None else bias) - centre * scale
    tensor = w.read(x, last=True, integer=False)
    for code, value in (("MUL", scale), ("ADD", shift)):
        constant = w.model.constant(w.name(node), value.astype(np.float32))
        output = w.output(node, last=True, grid=None)
        tensor = w.model.operator(code, [tensor, constant], output, fusedActivationFunction=0)
    w.put(node, tensor, last=True)


instance_norm, group_norm, layer_norm = normalised(_instance), normalised(_group), normalised(_layer)
