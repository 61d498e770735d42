"""OpenVINO on the CPU, through ONNX QuantizeLinear / DequantizeLinear pairs."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from microtome.errors import MissingExtraError, ReadError, TargetError
from microtome.runtimes.base import LayerRun, answer, arrays
from microtome.runtimes.openvino_fourier import refuse_fourier
from microtome.types import FREE, Array, Batch, Capabilities, OperatorSupport, Port, QType

if TYPE_CHECKING:
    from microtome.graph.network import Network

NAME = "openvino"
EXTRA = "openvino"
PRECISIONS = ("f32", "bf16")
RUNS_INTEGERS = True

# Unsigned with a zero point: the integer units multiply u8 by s8, and signed inputs cost a correction.
UNSIGNED = QType(8, signed=False, symmetric=False)
# Deconvolution runs in integers only on signed symmetric inputs, and only where the quantizer stands right before it:
# behind an integer concatenation 2026.4 falls back to f32 and computes wrong values.
SIGNED = QType(8)
WEIGHT = QType(8, narrow=True)


def capabilities() -> Capabilities:
    """Return what OpenVINO's CPU plugin runs in 8 bits.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    _core()
    return Capabilities(
        target=NAME,
        operators={
            "conv": OperatorSupport(UNSIGNED, WEIGHT),
            "conv_transpose": OperatorSupport(SIGNED, WEIGHT, directly=True),
            "linear": OperatorSupport(UNSIGNED, WEIGHT),
        },
        transparent=frozenset({"concat", "max_pool"}),
        readers={"add": UNSIGNED, "instance_norm": SIGNED},
    )


def check(network: Network) -> None:
    """Refuse what OpenVINO would compute wrongly, before any work is done. Raises as `refuse_fourier`."""
    refuse_fourier(network)


def export(network: Network, folder: Path) -> Path:
    """Write `model.xml` and `model.bin`.

    Raises:
        TargetError: an operator has no form in ONNX or OpenVINO; the error names it.
    """
    check(network)
    from microtome.graph.rewriting.blocks_of_input import blocks_of_input
    from microtome.graph.rewriting.columns_as_channels import columns_as_channels
    from microtome.graph.rewriting.norms import norms_by_channel
    from microtome.graph.rewriting.row_concat import planar_concats
    from microtome.graph.rewriting.small_grid import small_grid
    from microtome.graph.rewriting.sub_pixel import sub_pixel
    from microtome.graph.rewriting.window_masks import window_masks
    from microtome.runtimes.onnx_file import export_onnx
    from microtome.runtimes.openvino_padding import join_padding
    from microtome.runtimes.openvino_precise import keep_statistics_precise

    core = _core()
    import openvino

    by_channel = norms_by_channel(network)
    has_moments = by_channel is not network
    on_small_grids = blocks_of_input(sub_pixel(small_grid(by_channel)))
    network = planar_concats(columns_as_channels(window_masks(on_small_grids)))

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        onnx_file = Path(scratch) / "model.onnx"
        export_onnx(network, onnx_file, zero_points=False)
        try:
            model = core.read_model(onnx_file)
        except RuntimeError as error:
            raise TargetError(
                f"OpenVINO cannot read the exported network: {_reason(error)}.", "Try `--target onnxruntime`."
            ) from error
        join_padding(model)
        path = folder / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
    if has_moments:
        keep_statistics_precise(path)
    _without_indentation(path)
    return path


def _without_indentation(path: Path) -> None:
    """Take out the white space between an .xml file's tags: a sixth of it."""
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r">\s+<", "><", text), encoding="utf-8")


def files(path: Path) -> tuple[Path, ...]:
    """Return the .xml and the .bin."""
    return (path, path.with_suffix(".bin"))


def measurable() -> bool:
    """Return whether openvino is installed."""
    return find_spec("openvino") is not None


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a model file; `threads` 0 lets OpenVINO choose."""
    return Session(path, threads=threads, precision=precision)


def open_content(path: Path, files: Mapping[str, bytes], *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a model that is in memory: the .xml and the .bin, by name."""
    return Session(path, threads=threads, precision=precision, files=files)


Shapes = tuple[tuple[int, ...], ...]
"""Of all inputs, in order, the batch included."""


class Session:
    """A model on the CPU, compiled for each input shape that it meets (the last few are kept)."""

    MOST_SHAPES = 4
    MOST_STREAMS = 8  # each stream holds activations of its own: beyond this, several threads share one

    def __init__(
        self, path: Path, *, threads: int = 0, precision: str = "f32", files: Mapping[str, bytes] | None = None
    ) -> None:
        """Read the file.

        Args:
            path: `model.xml`, or an `.onnx` file.
            threads: 0 lets OpenVINO choose.
            precision: of what the file leaves in float: `f32` or `bf16`.
            files: content of the .xml and the .bin, by name, in place of what is on disk.

        Raises:
            MissingExtraError: openvino is not installed.
            ReadError: the file is missing or broken.
        """
        if files is None and not path.exists():
            raise ReadError(f"{path} does not exist.", "Give the model.xml of a package.")
        try:
            if files is None:
                self._model = _core().read_model(path)
            else:
                self._model = _core().read_model(files[path.name], files[path.with_suffix(".bin").name])
        except RuntimeError as error:
            raise ReadError(f"{path} is not a model that OpenVINO can read: {_reason(error)}.") from error
        self._settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # or it rounds activations by itself where only the weight is in integers
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._streams = min(threads or _processors(), self.MOST_STREAMS)
        self.inputs = tuple(_port(port) for port in self._model.inputs)
        self.outputs = tuple(_port(port) for port in self._model.outputs)
        self._requests: dict[Shapes, Any] = {}
        self._streaming: dict[Shapes, Any] = {}

    @overload
    def run(self, x: Array) -> Array: ...

    @overload
    def run(self, x: Mapping[str, Array]) -> dict[str, Array]: ...

    def run(self, x: Batch) -> Array | dict[str, Array]:
        """Run an array and return the first output, or all inputs by name and return all outputs by name."""
        given = arrays(x, self.inputs)
        shapes = tuple(array.shape for array in given)
        if shapes not in self._requests:
            self._make_room(self._requests)
            self._requests[shapes] = self._compile(shapes, {}).create_infer_request()
        request = self._requests[shapes]
        request.infer(dict(enumerate(given)), share_inputs=True)
        names = [port.name for port in (self.outputs if isinstance(x, Mapping) else self.outputs[:1])]
        return answer(x, {name: np.array(request.get_output_tensor(k).data) for k, name in enumerate(names)})

    def stream(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs that all have one shape, as many at a time as there are threads (8 at most); results in order.

        The next input is taken from `batches` while earlier ones run. Fewer inputs than streams run one after another
        on all threads, as `run` does: one thread each would leave the others idle. An array gives the first output, a
        mapping all of them by name.

        Yields:
            The runtime's own memory, valid until the next result is asked for. Closing early waits for what runs.
        """
        batches = iter(batches)
        first = list(itertools.islice(batches, self._streams))
        if self._streams == 1 or len(first) < self._streams:
            for x in itertools.chain(first, batches):
                yield self.run(x)
            return
        compiled = self._compiled_for_streams(tuple(array.shape for array in arrays(first[0], self.inputs)))
        idle = [compiled.create_infer_request() for _ in range(self._streams + 1)]
        flying: collections.deque[tuple[Any, Batch, list[Array]]] = collections.deque()  # inputs are shared: held here
        try:
            for x in itertools.chain(first, batches):
                request, shared = idle.pop(), arrays(x, self.inputs)
                request.start_async(dict(enumerate(shared)), share_inputs=True)
                flying.append((request, x, shared))
                if not idle:
                    yield self._finished(*flying[0][:2])
                    idle.append(flying.popleft()[0])
            while flying:
                yield self._finished(*flying[0][:2])
                flying.popleft()
        finally:
            for request, *_ in flying:
                with contextlib.suppress(RuntimeError):  # its result is not wanted any more
                    request.wait()

    def _finished(self, request: Any, x: Batch) -> Batch:
        """Wait for a request, and return what it made of `x`."""
        request.wait()
        return answer(x, {port.name: request.get_output_tensor(k).data for k, port in enumerate(self.outputs)})

    def layer_runs(self, x: Batch) -> tuple[LayerRun, ...]:
        """Run `x` twice with profiling and return the operators of the second run."""
        given = arrays(x, self.inputs)
        compiled = self._compile(tuple(array.shape for array in given), {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        for _ in range(2):
            request.infer(dict(enumerate(given)))
        runs = []
        for node in compiled.get_runtime_model().get_ordered_ops():
            info = {key: value.astype(str) for key, value in node.get_rt_info().items() if _is_text(value)}
            kind, kernel = info.get("layerType", ""), info.get("primitiveType", "")
            if kind in ("Input", "Output", "Const") or not kernel:
                continue
            time = info.get("execTimeMcs", "")
            milliseconds = float(time) / 1e3 if time.isdigit() else None
            names = (node.get_friendly_name(), *filter(None, info.get("originalLayersNames", "").split(",")))
            runs.append(LayerRun(names, kind, _precision(kernel), kernel, milliseconds))
        return tuple(runs)

    def _compiled_for_streams(self, shapes: Shapes) -> Any:
        if shapes not in self._streaming:
            self._make_room(self._streaming)
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self._streams}
            self._streaming[shapes] = self._compile(shapes, settings)
        return self._streaming[shapes]

    def _make_room(self, cache: dict[Shapes, Any]) -> None:
        while len(cache) >= self.MOST_SHAPES:
            del cache[next(iter(cache))]

    def _compile(self, shapes: Shapes, extra: Mapping[str, Any]) -> Any:
        model = self._model.clone()
        try:
            model.reshape({place: list(shape) for place, shape in enumerate(shapes)})
            return _core().compile_model(model, "CPU", {**self._settings, **extra})
        except RuntimeError as error:
            raise TargetError(
                f"OpenVINO cannot run this network on an input of shape {', '.join(map(str, shapes))} in "
                f"{self._settings['INFERENCE_PRECISION_HINT']}: {_reason(error)}.",
                "Check the patch size in pipeline.json, or choose --target onnxruntime.",
            ) from error


@functools.cache
def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("The target openvino", EXTRA) from error
    return openvino.Core()


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _port(port: Any) -> Port:
    _, *sizes = port.get_partial_shape()
    shape = tuple(size.get_length() if size.is_static else FREE for size in sizes)
    return Port(port.get_any_name(), shape, tuple(size.is_dynamic for size in port.get_partial_shape()))


def _is_text(value: Any) -> bool:
    return hasattr(value, "astype")


def _precision(kernel: str) -> str:
    """Read the precision off a kernel's name, such as `brgconv_avx512_amx_I8`."""
    suffix = kernel.rsplit("_", 1)[-1].lower()
    return {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "f16"}.get(suffix, "f32")


def _reason(error: BaseException) -> str:
    """Return the last informative line of OpenVINO's nested messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    return (lines[-1] if lines else str(error))[:200].rstrip(".")
