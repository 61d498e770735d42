"""Whether a network does what the file that it was read from does: asked of the file's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microtome.errors import ModelError
from microtome.graph.network import Network
from microtome.graph.quiet import first_line
from microtome.models.foreign.values import Array

# Float kernels of two libraries differ in the order of their sums. Grids let single values jump by a step.
LARGEST = 1e-3  # of the largest output
KERNELS = 1e-6  # of a probability: how far runtimes' own sigmoid and exponential are off
LARGEST_ROOT = 0.03  # of the outputs' root mean square, where the file rounds to grids
Reference = Callable[[Mapping[str, Array]], dict[str, Array]]


def images(shapes: Mapping[str, tuple[int, ...]], count: int = 2) -> list[dict[str, Array]]:
    """Return inputs to compare on: one of normal noise, one smooth and between 0 and 1."""
    rng = np.random.default_rng(0)
    noise = {name: rng.standard_normal((1, *shape)).astype(np.float32) for name, shape in shapes.items()}
    smooth = {}
    for name, shape in shapes.items():
        steps = [np.linspace(0, 3 + k, n, dtype=np.float32) for k, n in enumerate(shape)]
        waves: Array = np.sum([np.sin(wave) for wave in np.meshgrid(*steps, indexing="ij")], axis=0)
        smooth[name] = (waves[None] / (2 * len(shape)) + 0.5).astype(np.float32)
    return [noise, smooth][:count]


def same_outputs(
    network: Network, reference: Reference, names: Mapping[str, str], *, runtime: str, rounded: bool
) -> str:
    """Compare a network with the file's own runtime, and return a note on how close they are.

    Args:
        network: what was read.
        reference: runs the file: inputs by the network's names → outputs by the file's names, laid out as here.
        names: the file's names of the network's outputs.
        runtime: what runs it, for the error.
        rounded: whether the file rounds to grids.

    Raises:
        ModelError: they differ, or the file's own runtime cannot run it.
        BatchError: images of one batch are not treated apart.
    """
    worst, largest, inputs = 0.0, 0.0, images({port.name: port.shape for port in network.inputs})
    for given in inputs:
        try:
            wanted = reference(given)
        except Exception as error:  # runtimes raise many kinds
            raise ModelError(
                f"{runtime} cannot run the file on an input of {_times(given)}: {first_line(error)}.",
                "Give the shape that the network takes: --input-shape C,H,W or C,D,H,W.",
            ) from error
        for name, output in _run(network, given).items():
            theirs = wanted[names[name]].astype(np.float32)
            if output.squeeze().shape != theirs.squeeze().shape:
                raise ModelError(
                    f"output {name!r} has the shape {output.shape}, in {runtime} {theirs.shape}.", "Report this file."
                )
            if not np.isfinite(theirs).all():
                raise ModelError(f"output {name!r} is not finite in {runtime} itself.", "Export the network again.")
            share, close = _compared(output, theirs, rounded)
            if not close:
                raise ModelError(
                    f"what was read computes something else than {runtime}: output {name!r} differs by {share:.2g} of "
                    "its largest value.",
                    "Give the network as PyTorch code (file.py:factory), and please report this file.",
                )
            worst, largest = max(worst, share), max(largest, float(np.abs(theirs).max()))
    if network.dynamic[0]:
        _check_batch(network, inputs, runtime, rounded)
    if largest < KERNELS / LARGEST:
        return f"Checked against {runtime}, where its outputs are nearly 0 on made-up images: that says little."
    return f"Checked against {runtime}: outputs differ by at most {worst:.1g} of the largest."


def _run(network: Network, given: Mapping[str, Array]) -> dict[str, Array]:
    with torch.no_grad():
        outputs = network.run({name: torch.from_numpy(array) for name, array in given.items()})
    return {name: output.numpy() for name, output in outputs.items()}


def _compared(found: Array, wanted: Array, rounded: bool) -> tuple[float, bool]:
    """Return the largest difference as a share of the largest value, and whether that is close enough."""
    exact = wanted.astype(np.float64).reshape(found.shape)
    off, scale = np.abs(found - exact), float(np.abs(exact).max())
    most = float(off.max()) if np.isfinite(found).all() else np.inf
    root = float(np.sqrt(np.mean(off**2))) if rounded else np.inf
    close = most <= LARGEST * scale + KERNELS or root <= LARGEST_ROOT * float(np.sqrt(np.mean(exact**2)))
    return most / max(scale, KERNELS), close


def _check_batch(network: Network, inputs: list[dict[str, Array]], runtime: str, rounded: bool) -> None:
    """Raise BatchError if two images at once give something else than one after the other."""
    apart = [_run(network, one) for one in inputs]
    both = _run(network, {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]})
    for name, output in both.items():
        wanted = np.concatenate([one[name] for one in apart])
        if output.shape != wanted.shape or not _compared(output, wanted, rounded)[1]:
            raise BatchError(f"output {name!r} mixes the images of a batch.", f"{runtime} runs them one by one.")


class BatchError(ModelError):
    """A graph with a free batch does not treat its images apart."""


def onnx_reference(
    path: Path, model: Any, shapes: Mapping[str, tuple[str, bool]], last_out: frozenset[str]
) -> tuple[Reference, str]:
    """Return what runs an ONNX file, and its name: ONNX Runtime, or ONNX's own evaluator where that is missing.

    Args:
        path: of the file, which may have others beside it.
        model: as it was read.
        shapes: the network's input names → the file's, and whether it has channels last there.
        last_out: the file's outputs that have channels last.
    """
    outputs = [value.name for value in model.graph.output]
    run: Callable[[dict[str, Array]], list[Any]]
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        title = "ONNX's reference evaluator"
        run = lambda feed: list(evaluator.run(outputs, feed))  # noqa: E731
    else:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        # As the file says, not as it can be fused: what is rounded stays rounded.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        title = "ONNX Runtime"
        run = lambda feed: list(session.run(outputs, feed))  # noqa: E731
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}

    def reference(given: Mapping[str, Array]) -> dict[str, Array]:
        import onnx

        feed = {}
        for name, array in given.items():
            theirs, last = shapes[name]
            moved = np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array
            feed[theirs] = moved.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[theirs]))
        made = dict(zip(outputs, run(feed), strict=True))
        return {n: np.moveaxis(a, -1, 1) if n in last_out and a.ndim > 2 else a for n, a in made.items()}

    return reference, title


def _times(given: Mapping[str, Array]) -> str:
    return ", ".join("×".join(map(str, array.shape)) for array in given.values())
