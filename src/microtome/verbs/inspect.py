"""`inspect`: what each layer costs, and what each target would run it in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from microtome.errors import MissingExtraError, OptionError
from microtome.files import writing
from microtome.graph.choosing.placement import supported_layers
from microtome.graph.network import Network
from microtome.graph.quantizers import weight_quantizer
from microtome.graph.watching.macs import layer_sizes
from microtome.medical.further import with_further
from microtome.medical.pipeline import Pipeline
from microtome.models import Loaded
from microtome.progress import Progress, Silent
from microtome.runtimes import TARGETS, runtime
from microtome.verbs.cohort_view import pipeline_fields, view_of
from microtome.verbs.loading import load
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_network
from microtome.verbs.roles import as_classes, read_cohort, unseen
from microtome.verbs.score import doubt_of


def inspect(
    model: str | Path,
    *,
    target: str | None = None,
    cohort: Path | None = None,
    write_pipeline: Path | None = None,
    options: CompressOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Capture a network and list its layers; with a cohort also say what `compress` would make of the two.

    Args:
        model: anything that `compress` takes.
        target: only this one; None is all that are installed.
        cohort: labelled cases; what nobody declares is guessed from them, and the guess is checked on a few.
        write_pipeline: file to make, with the pipeline that `compress` would use.
        options: those that concern model and cohort.
        progress: told of what is done.

    Returns:
        `title`, `input` and `dynamic` of the image, `inputs` and `outputs` with `name`, `shape` (without the batch) and
        `dynamic` (with it), `parameters`, `macs` (multiply-accumulates for one input), `targets`, `notes`, and `layers`
        with `name`, `op`, `weight` and `output` shapes, `parameters`, `macs`, `executes` (target → `int8` or `f32`).
        `steps`: what became of each step of processing that a MONAI bundle declares, with `stage`, `name`, `verdict`
        (`translated`, `harmless` or `noted`) and `what`.
        `pipeline`, where one is known: the fields that say something, see `cohort_view.pipeline_fields`. With a cohort
        also `cohort`, see `cohort_view.view_of`.

    Raises:
        OptionError: there is no pipeline to write, or the file is there already.
        MicrotomeError: of the kind that says what is wrong.
    """
    options = options or CompressOptions()
    if write_pipeline is not None and write_pipeline.exists():
        raise OptionError(f"{write_pipeline} is there already.", "Remove it, or name another file.")
    loaded, found, seen = _read(str(model), cohort, options, progress or Silent())
    network = loaded.network
    if write_pipeline is not None:
        if found is None:
            raise OptionError(f"nothing says what {model} wants.", "Give a cohort to guess from: --cohort.")
        with writing(write_pipeline):
            write_pipeline.write_text(found.to_json())
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
        "pipeline": [] if found is None else pipeline_fields(found, guessed=loaded.guessed),
        "steps": [asdict(step) for step in loaded.steps],
        "notes": list(dict.fromkeys((*loaded.notes, *network.notes))),
        **seen,
    }


def _read(
    model: str, path: Path | None, options: CompressOptions, progress: Progress
) -> tuple[Loaded, Pipeline | None, dict[str, Any]]:
    """Load the model and the cohort; return both, the pipeline that goes with them, and what is seen of the cohort."""
    if path is None:
        loaded = load(model, options, untrained=True)
        return loaded, loaded.pipeline, {}
    cohort = read_cohort(path, options)
    loaded, pipeline = read_network(model, cohort, options)
    cohort = as_classes(unseen(cohort, loaded.trained_on, options), pipeline)
    cohort = with_further(cohort, pipeline, options.inputs)
    doubt = doubt_of(loaded, cohort, pipeline, options, progress)
    return loaded, pipeline, {"cohort": view_of(cohort, pipeline), "warnings": [doubt] if doubt else []}


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
