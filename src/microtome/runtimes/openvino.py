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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import MissingExtraError, ReadError, TargetError
from microtome.runtimes.base import LayerRun
from microtome.types import Array, Capabilities, OperatorSupport, QType

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


def export(network: Network, folder: Path) -> Path:
    """Write `model.xml` and `model.bin`.

    Raises:
        TargetError: an operator has no form in ONNX or OpenVINO; the error names it.
    """
    from microtome.graph.rewriting.columns import columns_as_channels
    from microtome.graph.rewriting.norms import norms_by_channel
    from microtome.graph.rewriting.planar import planar_concats
    from microtome.graph.rewriting.sub_pixel import sub_pixel
    from microtome.graph.rewriting.window_masks import window_masks
    from microtome.runtimes.onnx_file import export_onnx
    from microtome.runtimes.openvino_precise import keep_statistics_precise

    core = _core()
    import openvino

    by_channel = norms_by_channel(network)
    has_moments = by_channel is not network
    network = planar_concats(columns_as_channels(window_masks(sub_pixel(by_channel))))

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        onnx_file = Path(scratch) / "model.onnx"
        export_onnx(network, onnx_file, zero_points=False)
        try:
            model = core.read_model(onnx_file)
        except RuntimeError as error:
            raise TargetError(
                f"OpenVINO cannot read the exported network: {_reason(error)}.", "Try `--target onnxruntime`."
            ) from error
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


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load a model file; `threads` 0 lets OpenVINO choose."""
    return Session(path, threads=threads, precision=precision)


class Session:
    """A model on the CPU, compiled for each input shape that it meets (the last few are kept)."""

    MOST_SHAPES = 4
    MOST_STREAMS = 8  # each stream holds activations of its own: beyond this, several threads share one

    def __init__(self, path: Path, *, threads: int = 0, precision: str = "f32") -> None:
        """Read the file.

        Args:
            path: `model.xml`, or an `.onnx` file.
            threads: 0 lets OpenVINO choose.
            precision: of what the file leaves in float: `f32` or `bf16`.

        Raises:
            MissingExtraError: openvino is not installed.
            ReadError: the file is missing or broken.
        """
        if not path.exists():
            raise ReadError(f"{path} does not exist.", "Give the model.xml of a package.")
        try:
            self._model = _core().read_model(path)
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
        self._requests: dict[tuple[int, ...], Any] = {}
        self._streaming: dict[tuple[int, ...], Any] = {}

    def run(self, x: Array) -> Array:
        """Run float32 (N, C, *S) → float32 (N, K, *S) or (N, K)."""
        if x.shape not in self._requests:
            self._make_room(self._requests)
            self._requests[x.shape] = self._compile(x.shape, {}).create_infer_request()
        request = self._requests[x.shape]
        request.infer({0: np.ascontiguousarray(x, np.float32)}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    def stream(self, batches: Iterable[Array]) -> Iterator[Array]:
        """Run inputs that all have one shape, as many at a time as there are threads (8 at most); results in order.

        The next input is taken from `batches` while earlier ones run. Fewer inputs than streams run one after another
        on all threads, as `run` does: one thread each would leave the others idle.

        Yields:
            The runtime's own memory, valid until the next result is asked for. Closing early waits for what runs.
        """
        batches = iter(batches)
        first = list(itertools.islice(batches, self._streams))
        if self._streams == 1 or len(first) < self._streams:
            for x in itertools.chain(first, batches):
                yield self.run(x)
            return
        compiled = self._compiled_for_streams(first[0].shape)
        idle = [compiled.create_infer_request() for _ in range(self._streams + 1)]
        flying: collections.deque[tuple[Any, Array]] = collections.deque()  # inputs are shared, so they are held here
        try:
            for x in itertools.chain(first, batches):
                request, shared = idle.pop(), np.ascontiguousarray(x, np.float32)
                request.start_async({0: shared}, share_inputs=True)
                flying.append((request, shared))
                if not idle:
                    yield _finished(flying[0][0])
                    idle.append(flying.popleft()[0])
            while flying:
                yield _finished(flying[0][0])
                flying.popleft()
        finally:
            for request, _ in flying:
                with contextlib.suppress(RuntimeError):  # its result is not wanted any more
                    request.wait()

    def layer_runs(self, x: Array) -> tuple[LayerRun, ...]:
        """Run `x` twice with profiling and return the operators of the second run."""
        compiled = self._compile(x.shape, {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        for _ in range(2):
            request.infer({0: np.ascontiguousarray(x, np.float32)})
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

    def _compiled_for_streams(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._streaming:
            self._make_room(self._streaming)
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self._streams}
            self._streaming[shape] = self._compile(shape, settings)
        return self._streaming[shape]

    def _make_room(self, cache: dict[tuple[int, ...], Any]) -> None:
        while len(cache) >= self.MOST_SHAPES:
            del cache[next(iter(cache))]

    def _compile(self, shape: tuple[int, ...], extra: Mapping[str, Any]) -> Any:
        model = self._model.clone()
        try:
            model.reshape(list(shape))
            return _core().compile_model(model, "CPU", {**self._settings, **extra})
        except RuntimeError as error:
            raise TargetError(
                f"OpenVINO cannot run this network on an input of shape {shape} in "
                f"{self._settings['INFERENCE_PRECISION_HINT']}: {_reason(error)}.",
                "Check the patch size in pipeline.json, or choose the other float precision.",
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


def _finished(request: Any) -> Array:
    request.wait()
    output: Array = request.get_output_tensor(0).data
    return output


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
