"""Names in an ONNX file: inputs and outputs as the network calls them, free sizes as people do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

SPACE = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
SYMBOL = re.compile(r"\bs\d+\b")  # `s77`: how the exporter calls a size


def name_ports(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of an ONNX model, in place; another value of such a name gets a new one."""
    graph = model.graph
    ports = [value.name for value in (*graph.input, *graph.output)]
    wanted = dict(zip(ports, (*inputs, *outputs), strict=True))
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    renamed = {name: _unused(name, {*used, *wanted.values()}) for name in wanted.values() if name in used - set(ports)}
    _rename(graph, {**renamed, **wanted})


def name_dims(model: Any) -> None:
    """Rename the free sizes of an ONNX model, in place: `batch`, `height` and `width` instead of `s77`.

    An input's axes are the batch, channels, and those of space: `length`, `height` and `width`, or `depth`, `height`
    and `width`. What is always equal has one name; a size of another input that is free by itself has the input's name
    before it. Sizes that follow from others are expressions of these, such as `2*height`.
    """
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        axes = ("batch", "channels", *SPACE.get(len(sizes) - 2, (f"axis{k}" for k in range(2, len(sizes)))))
        for size, axis in zip(sizes, axes, strict=False):
            if SYMBOL.fullmatch(size.dim_param) and size.dim_param not in names:
                names[size.dim_param] = f"{value.name}_{axis}" if axis in names.values() else axis
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = SYMBOL.sub(lambda symbol: names.get(symbol[0], symbol[0]), size.dim_param)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def _unused(name: str, used: set[str]) -> str:
    return next(new for k in itertools.count(1) if (new := f"{name}_{k}") not in used)
