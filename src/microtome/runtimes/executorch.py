"""ExecuTorch: PyTorch's runtime for phones and small devices, with XNNPACK's kernels for their CPUs."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import MissingExtraError, ReadError, TargetError
from microtome.runtimes.base import LayerRun
from microtome.runtimes.fixed import FixedSession, port_of
from microtome.types import Array, Batch, Capabilities, OperatorSupport, QType

if TYPE_CHECKING:
    from microtome.graph.network import Network

NAME = "executorch"
EXTRA = "executorch"
PRECISIONS = ("f32",)
RUNS_INTEGERS = True

UNSIGNED = QType(8, signed=False, symmetric=False)
WEIGHT = QType(8, narrow=True)
NOTES = "model.json"  # beside the program: names and shapes, and what XNNPACK took
IDENTIFIER = b"ET12"
# Operators that XNNPACK runs on 8-bit integers, by their kinds in the graph, and those that move integers.
INTEGERS = ("add", "sub", "mul", "relu", "clamp", "leaky_relu", "elu", "sigmoid", "tanh", "mean")
MOVED = ("concat", "max_pool", "reshape", "transpose", "pad", "slice")


def capabilities() -> Capabilities:
    """Return what XNNPACK runs in 8 bits: graphs that are in integers from end to end, of images and rows.

    Raises:
        MissingExtraError: executorch is not installed.
    """
    _require()
    support = OperatorSupport(UNSIGNED, WEIGHT, spatial_dims=(1, 2))
    return Capabilities(
        target=NAME,
        operators={"conv": support, "conv_transpose": support, "linear": OperatorSupport(UNSIGNED, WEIGHT)},
        transparent=frozenset(MOVED),
        integers=dict.fromkeys(INTEGERS, UNSIGNED),
        same_grid=frozenset({"avg_pool", "upsample_bilinear2d"}),
    )


def check(network: Network) -> None:
    """Refuse volumes before any work is done.

    Raises:
        TargetError: a layer is 3-D: neither XNNPACK nor ExecuTorch's portable kernels have one.
    """
    from microtome.graph.operators import spatial_dims

    for layer in network.layers:
        if spatial_dims(layer.node) == 3:
            raise TargetError(
                f"the layer {layer.name} is a 3-D {layer.op.replace('_', ' ')}, and ExecuTorch has no kernel for one.",
                "Choose --target litert, which runs 3-D layers over slices, or openvino.",
            )


def export(network: Network, folder: Path) -> Path:
    """Write `model.pte`, and `model.json` with names and shapes.

    Raises:
        TargetError: an operator has no form in ExecuTorch; or see `check`.
    """
    check(network)
    _require()
    import torch

    from microtome.graph.quiet import first_line, quiet
    from microtome.graph.rewriting.bias_room import room_for_biases
    from microtome.graph.rewriting.integers import with_integers
    from microtome.graph.structure.attention import expand_attention
    from microtome.runtimes.onnx_file import in_containers

    with quiet(), _silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        importlib.import_module("executorch.kernels.quantized")  # for what stays outside XNNPACK
    whole = in_containers(expand_attention(room_for_biases(network)))
    blank = tuple(whole.blank().values())
    with torch.no_grad():
        outputs = whole.run(whole.blank())
    try:
        with quiet(), _silent(), torch.no_grad():
            program = torch.export.export(with_integers(whole).graph_module, blank)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            content = edge.to_executorch().buffer
    except Exception as error:
        raise TargetError(
            f"the network cannot be written for ExecuTorch: {first_line(error)}.",
            "Replace that operator in the model, or choose --target litert or onnxruntime.",
        ) from error
    notes = {
        "inputs": [{"name": port.name, "shape": port.shape} for port in network.inputs],
        "outputs": [{"name": name, "shape": tuple(value.shape)[1:]} for name, value in outputs.items()],
        "layers": _layers(whole, edge.exported_program()),
    }
    path = folder / "model.pte"
    path.write_bytes(content)
    (folder / NOTES).write_text(json.dumps(notes))
    return path


def _layers(network: Network, program: Any) -> list[dict[str, str]]:
    """Return how each layer runs: what the program itself still reads a weight for was left to portable kernels."""
    from microtome.graph.operators import kind
    from microtome.graph.quantizers import weight_quantizer

    signature = program.graph_signature
    outside = {*signature.inputs_to_buffers.values(), *signature.inputs_to_parameters.values()}
    found = []
    for layer in network.layers:
        weight = str(layer.weight.target)
        taken = not any(name in (weight, f"{weight}_int8") for name in outside)
        value: Any = layer.node.args[0]
        whole = weight_quantizer(network, layer) is not None and kind(value) in ("quantizer", *MOVED)
        executed = "int8" if taken and whole else "f32"
        found.append(
            {"name": layer.name, "op": layer.op, "executed": executed, "kernel": "XNNPACK" if taken else "portable"}
        )
    return found


def files(path: Path) -> tuple[Path, ...]:
    """Return the program and what is noted beside it."""
    return (path, path.with_name(NOTES))


def measurable() -> bool:
    """Return whether executorch is installed."""
    return find_spec("executorch") is not None


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.pte` file; `precision` must be f32."""
    assert precision in PRECISIONS
    for file in files(path):
        if not file.exists():
            raise ReadError(f"{file} does not exist.", "Give the model.pte of a package, with model.json beside it.")
    return Session(path, {file.name: file.read_bytes() for file in files(path)}, threads=threads)


def open_content(path: Path, files: Mapping[str, bytes], *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a `.pte` file that is in memory."""
    assert precision in PRECISIONS
    return Session(path, files, threads=threads)


class Session(FixedSession):
    """A program that microtome wrote. A process has one pool of threads: the first session sets its size."""

    target = "ExecuTorch"

    def __init__(self, path: Path, content: Mapping[str, bytes], *, threads: int = 0) -> None:
        """Load the program.

        Raises:
            MissingExtraError: executorch is not installed.
            ReadError: a file is broken, or not from microtome.
        """
        _require()
        with _silent():
            from executorch.runtime import Runtime, Verification

        try:
            notes = json.loads(content[NOTES])
            self.inputs, self.outputs = (tuple(map(port_of, notes[key])) for key in ("inputs", "outputs"))
            self._layers = [dict(row) for row in notes["layers"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ReadError(f"{path.with_name(NOTES)} is broken.", "Export the network again.") from error
        if content[path.name][4:8] != IDENTIFIER:
            raise ReadError(f"{path} is no ExecuTorch program of a version that can be read.", "Export it again.")
        _set_threads(threads)
        self._content = content[path.name]  # a program reads its constants from these bytes as long as it lives
        try:
            with _silent():
                self._program = Runtime.get().load_program(
                    content[path.name], verification=Verification.InternalConsistency
                )
                self._method = self._program.load_method("forward")
        except Exception as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ReadError(
                f"{path} is not a program that ExecuTorch can load: {reason}.", "Export it again."
            ) from error

    def layer_runs(self, x: Batch) -> tuple[LayerRun, ...]:
        """Run `x`, and return for each layer what XNNPACK took at the export; times are not measured."""
        self.run(x)
        return tuple(LayerRun((row["name"],), row["op"], row["executed"], row["kernel"], None) for row in self._layers)

    def _one(self, given: Sequence[Array]) -> list[Array]:
        import torch

        found = self._method.execute([torch.from_numpy(np.ascontiguousarray(array)) for array in given])
        return [np.array(value.numpy(), np.float32) for value in found]


_threads: int | None = None
"""Of the process's one pool; it must not change while a program lives."""


def _set_threads(threads: int) -> None:
    """Give the process's pool so many threads, if no session has done that before; 0 leaves it as it is."""
    global _threads  # noqa: PLW0603
    if _threads is not None:
        return
    _threads = threads
    if threads:
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(threads)


def _require() -> None:
    if find_spec("executorch") is None:
        raise MissingExtraError("The target executorch", EXTRA)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what the compiler says of itself from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
