"""A network as the content of a `.tflite` file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from microtome.runtimes.tflite.model import Grid
from microtome.runtimes.tflite.operators import OPERATORS
from microtome.runtimes.tflite.writer import Writer, moved

if TYPE_CHECKING:
    from microtome.graph.network import Network


def tflite(network: Network, metadata: str) -> bytes:
    """Return the file's content.

    Inputs that only quantizers of one grid read are integers, and so are outputs that come from one. Both have their
    channels last. The names and shapes that the network gives them are noted in the file.

    Args:
        network: with quantizers or without; weights of 8 bits or in float.
        metadata: the name under which that is noted.

    Raises:
        TargetError: an operator has no form in TensorFlow Lite; the error names it and its layer.
    """
    writer = Writer(network)
    graph = network.graph_module.graph
    inputs: dict[str, int] = {}
    for node, port in zip([n for n in graph.nodes if n.op == "placeholder"], network.inputs, strict=True):
        inputs[port.name] = _input(writer, node, port.name)
    writer.write(OPERATORS)
    results = next(node for node in graph.nodes if node.op == "output").args[0]
    found = list(results) if isinstance(results, list | tuple) else [results]
    outputs = {port.name: _output(writer, value) for value, port in zip(found, network.outputs, strict=True)}
    noted = {
        "inputs": [{"name": port.name, "shape": port.shape} for port in network.inputs],
        "outputs": [
            {"name": port.name, "shape": writer.shape(value)[1:]}
            for value, port in zip(found, network.outputs, strict=True)
        ],
    }
    return writer.model.write(inputs, outputs, {metadata: json.dumps(noted).encode()})


def _input(writer: Writer, node: Node, name: str) -> int:
    """Add an input, with its channels last; in integers where nobody reads it in float."""
    grid: Grid | None = writer.wanted(node)
    shape = writer.shape(node)
    last = len(shape) >= 3
    stored = moved(shape) if last else shape
    tensor = writer.model.tensor(name, stored, "float32" if grid is None else "int8", grid)
    writer.put(node, tensor, last=last)
    return tensor


def _output(writer: Writer, value: Any) -> int:
    """Return the tensor of an output, with its channels last, under its layer's name: the signature has its own."""
    return writer.read(value, last=len(writer.shape(value)) >= 3)
