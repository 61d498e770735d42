"""`inspect`: what each layer costs, and what each target would run it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from microtome.errors import MissingExtraError
from microtome.graph.network import Network
from microtome.graph.observe import Observed
from microtome.graph.placement import supported_layers
from microtome.graph.quantizers import weight_quantizer
from microtome.medical.pipeline import Pipeline
from microtome.models import load_model
from microtome.runtimes import TARGETS, runtime


def inspect(
    model: str | Path,
    *,
    target: str | None = None,
    weights: Path | None = None,
    pipeline: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Capture a network and list its layers.

    Args:
        model: anything that `compress` takes.
        target: only this one; None is all that are installed.
        weights: for `file.py:factory`.
        pipeline: for models without one.
        input_shape: (C, *S).

    Returns:
        `title`, `input`, `parameters`, `macs` (multiply-accumulates for one input), `targets`, `notes`, and `layers`
        with `name`, `op`, `weight` and `output` shapes, `parameters`, `macs`, `executes` (target → `int8` or `f32`).

    Raises:
        MicrotomeError: of the kind that says what is wrong.
    """
    declared = Pipeline.from_json(pipeline.read_text()) if pipeline is not None else None
    loaded = load_model(str(model), weights=weights, input_shape=input_shape, pipeline=declared)
    network = loaded.network
    shapes = _output_shapes(network)
    supported = {name: _integer_layers(network, name) for name in ([target] if target else _installed())}
    layers = []
    for layer in network.layers:
        weight = network.tensor(str(layer.weight.target))
        output = shapes[layer.name]
        quantized = weight_quantizer(network, layer)
        layers.append(
            {
                "name": layer.name,
                "op": layer.op,
                "weight": list(weight.shape),
                "output": output,
                "parameters": weight.numel(),
                "macs": _macs(layer.op, list(weight.shape), output, shapes[f"{layer.name} input"]),
                "quantized": quantized.qtype.name if quantized is not None else None,
                "executes": {name: "int8" if layer.name in names else "f32" for name, names in supported.items()},
            }
        )
    return {
        "title": loaded.title,
        "input": [1, *network.shape],
        "dynamic": list(network.dynamic),
        "parameters": network.parameters,
        "macs": sum(layer["macs"] for layer in layers),
        "targets": list(supported),
        "layers": layers,
        "notes": [*loaded.notes, *network.notes],
    }


def _installed() -> list[str]:
    names = []
    for name in TARGETS:
        try:
            runtime(name)
        except MissingExtraError:
            continue
        names.append(name)
    return names


def _integer_layers(network: Network, target: str) -> set[str]:
    return {layer.name for layer, _ in supported_layers(network, runtime(target).capabilities())}


def _output_shapes(network: Network) -> dict[str, list[int]]:
    """Return each layer's output shape by its name, and its input's as `NAME input`, for a batch of one."""
    by_node = {layer.node: layer.name for layer in network.layers}
    inputs = [layer.node.args[0] for layer in network.layers if isinstance(layer.node.args[0], Node)]
    shapes: dict[Any, list[int]] = {}
    Observed(network, {*by_node, *inputs}, lambda node, value: shapes.__setitem__(node, list(value.shape)))(
        torch.zeros((1, *network.shape), device=network.device)
    )
    named = {name: shapes[node] for node, name in by_node.items()}
    named.update({f"{name} input": shapes[node.args[0]] for node, name in by_node.items()})
    return named


def _macs(op: str, weight: list[int], output: list[int], given: list[int]) -> int:
    """Multiply-accumulates: every weight meets every output position (transposed convolutions: every input position).

    Grouped weights are stored without the zeros between the groups, so that this holds for them too.
    """
    size = 1
    for n in weight:
        size *= n
    if op == "linear":
        rows = 1
        for n in output[:-1]:
            rows *= n
        return rows * size
    positions = 1
    for n in (given if op == "conv_transpose" else output)[2:]:
        positions *= n
    return positions * size
