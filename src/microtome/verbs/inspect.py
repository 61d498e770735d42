"""`inspect`: what each layer costs, and what each target would run it in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from microtome.errors import MissingExtraError
from microtome.graph.choosing.placement import supported_layers
from microtome.graph.network import Network
from microtome.graph.quantizers import weight_quantizer
from microtome.graph.watching.macs import layer_sizes
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
        `title`, `input` and `dynamic` of the image, `inputs` and `outputs` with `name`, `shape` (without the batch) and
        `dynamic` (with it), `parameters`, `macs` (multiply-accumulates for one input), `targets`, `notes`, and `layers`
        with `name`, `op`, `weight` and `output` shapes, `parameters`, `macs`, `executes` (target → `int8` or `f32`).

    Raises:
        MicrotomeError: of the kind that says what is wrong.
    """
    declared = Pipeline.from_json(pipeline.read_text()) if pipeline is not None else None
    loaded = load_model(str(model), weights=weights, input_shape=input_shape, pipeline=declared)
    network = loaded.network
    supported = {name: _integer_layers(network, name) for name in ([target] if target else _installed())}
    layers = []
    for layer, size in zip(network.layers, layer_sizes(network), strict=True):
        quantized = weight_quantizer(network, layer)
        layers.append(
            {
                "name": layer.name,
                "op": layer.op,
                "weight": list(size.weight),
                "output": list(size.output),
                "parameters": size.weights,
                "macs": size.macs,
                "quantized": quantized.qtype.name if quantized is not None else None,
                "executes": {name: "int8" if layer.name in names else "f32" for name, names in supported.items()},
            }
        )
    return {
        "title": loaded.title,
        "input": [1, *network.shape],
        "dynamic": list(network.dynamic),
        "inputs": [asdict(port) for port in network.inputs],
        "outputs": [asdict(port) for port in network.outputs],
        "parameters": network.parameters,
        "macs": sum(layer["macs"] for layer in layers),
        "targets": list(supported),
        "layers": layers,
        "notes": list(dict.fromkeys([*loaded.notes, *network.notes])),
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
