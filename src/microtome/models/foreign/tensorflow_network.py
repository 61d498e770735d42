"""From a SavedModel folder to a captured network that was compared with TensorFlow."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from microtome.errors import ModelError
from microtome.graph.quiet import quiet
from microtome.models.base import Loaded, Wanted
from microtome.models.foreign.check import Reference
from microtome.models.foreign.layout import channels_last
from microtome.models.foreign.onnx_network import network_of as onnx_network_of
from microtome.models.foreign.patterns import put_together
from microtome.models.foreign.reading import read_onnx
from microtome.models.foreign.steps import read_graph
from microtome.models.foreign.values import Array

OPSET = "18"
MINUTES = 20


def network_of(folder: Path, wanted: Wanted) -> Loaded:
    """Convert, translate, capture and check a folder.

    Raises:
        ModelError: TensorFlow or tf2onnx cannot read it, an operator has no translation, or the outputs differ.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{folder.resolve().name}.onnx"
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--output", str(path)]
        done = subprocess.run(
            [*command, "--opset", OPSET], capture_output=True, text=True, timeout=60 * MINUTES, check=False
        )
        if done.returncode or not path.is_file():
            said = [line for line in done.stderr.strip().splitlines() if line.strip()]
            raise ModelError(
                f"tf2onnx cannot convert {folder}: {said[-1][:200].rstrip('.') if said else 'it says nothing'}.",
                "Save the model with a serving signature of one image: model.export(FOLDER) in Keras 3.",
            )
        model, _ = read_onnx(path)
        last_in, last_out = channels_last(put_together(read_graph(model)))
        outputs = [value.name for value in model.graph.output]
        reference = _reference(folder, bool(last_in), outputs, frozenset(last_out))
        return onnx_network_of(model, path, wanted, reference=(reference, "TensorFlow"))


def _reference(folder: Path, last: bool, outputs: list[str], last_out: frozenset[str]) -> Reference:
    import tensorflow

    with quiet():
        loaded = tensorflow.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        moved = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) if last else a for a in given.values()]
        names = list(signature.structured_input_signature[1])
        made = signature(**{n: tensorflow.constant(a) for n, a in zip(names, moved, strict=True)})
        found = {name: np.asarray(value) for name, value in zip(outputs, _in_order(made, outputs), strict=True)}
        return {n: np.moveaxis(a, -1, 1) if n in last_out else a for n, a in found.items()}

    return run


def _in_order(made: Mapping[str, object], outputs: list[str]) -> list[object]:
    """Return a signature's outputs in the order of the converted file, which keeps their names where it can."""
    named = [made[name.partition(":")[0]] for name in outputs if name.partition(":")[0] in made]
    return named if len(named) == len(outputs) else list(made.values())
