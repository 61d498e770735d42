"""ONNX Runtime on the CPU: the portable choice."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from microtome.errors import MissingExtraError, ReadError, TargetError
from microtome.runtimes.base import LayerRun, answer, arrays, one_by_one
from microtome.types import FREE, Array, Batch, Capabilities, OperatorSupport, Port, QType

if TYPE_CHECKING:
    from microtome.graph.network import Network

NAME = "onnxruntime"
EXTRA = "onnxruntime"
PRECISIONS = ("f32",)
RUNS_INTEGERS = True

UNSIGNED = QType(8, signed=False, symmetric=False)
WEIGHT = QType(8, narrow=True)
INTEGER_OPERATORS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QMoE")


def capabilities() -> Capabilities:
    """Return what the CPU provider runs in 8 bits: 1-D and 2-D convolutions, linear layers, and products of attention.

    It has no integer 3-D or transposed convolution. Convolutions must give integers; so must linear layers whose input
    is a matrix (Gemm). Linear layers on more axes, and products of two values, may give floats
    (MatMulIntegerToFloat). Both factors of a product are unsigned: the integers that the layer before gives.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    _module()
    return Capabilities(
        target=NAME,
        operators={
            "conv": OperatorSupport(UNSIGNED, WEIGHT, spatial_dims=(1, 2), output=(3, 4)),
            "linear": OperatorSupport(UNSIGNED, WEIGHT, output=(2,)),
            "matmul": OperatorSupport(UNSIGNED, UNSIGNED),
        },
        # no concat: ONNX Runtime does not carry a DequantizeLinear through it to the next layer
        transparent=frozenset({"max_pool"}),
    )


def export(network: Network, folder: Path) -> Path:
    """Write `model.onnx`, attention as plain products: an Einsum takes ONNX Runtime longer."""
    from microtome.graph.rewriting.bias_room import room_for_biases
    from microtome.graph.structure.attention import expand_attention
    from microtome.runtimes.onnx_file import export_onnx

    path = folder / "model.onnx"
    export_onnx(expand_attention(room_for_biases(network)), path)
    return path


def files(path: Path) -> tuple[Path, ...]:
    """Return the one file."""
    return (path,)


def measurable() -> bool:
    """Return whether onnxruntime is installed."""
    return find_spec("onnxruntime") is not None


def open_session(path: Path, *, threads: int = 0, precision: str = "f32") -> Session:
    """Load an `.onnx` file; `precision` must be f32."""
    assert precision in PRECISIONS
    return Session(path, threads=threads)


def open_content(path: Path, files: Mapping[str, bytes], *, threads: int = 0, precision: str = "f32") -> Session:
    """Load an `.onnx` file that is in memory."""
    assert precision in PRECISIONS
    return Session(path, threads=threads, content=files[path.name])


class Session:
    """An ONNX file on ONNX Runtime's CPU provider."""

    def __init__(self, path: Path, *, threads: int = 0, content: bytes | None = None) -> None:
        """Read the file, or take its content.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            ReadError: the file is missing or broken.
            TargetError: it has an operator that ONNX Runtime lacks.
        """
        if content is None and not path.exists():
            raise ReadError(f"{path} does not exist.", "Give the model.onnx of a package.")
        self._path, self._content = path, content
        self._threads = threads
        self._session = self._open({})
        self.inputs = tuple(_port(port) for port in self._session.get_inputs())
        self.outputs = tuple(_port(port) for port in self._session.get_outputs())

    @overload
    def run(self, x: Array) -> Array: ...

    @overload
    def run(self, x: Mapping[str, Array]) -> dict[str, Array]: ...

    def run(self, x: Batch) -> Array | dict[str, Array]:
        """Run an array and return the first output, or all inputs by name and return all outputs by name."""
        names = [port.name for port in (self.outputs if isinstance(x, Mapping) else self.outputs[:1])]
        return answer(x, dict(zip(names, self._run(self._session, names, x), strict=True)))

    def stream(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs of one shape, one after another."""
        return one_by_one(self.run, batches)

    def layer_runs(self, x: Batch) -> tuple[LayerRun, ...]:
        """Run `x` with profiling; kernels are the operators of the optimized graph."""
        with tempfile.TemporaryDirectory() as scratch:
            session = self._open({"enable_profiling": True, "profile_file_prefix": str(Path(scratch) / "profile")})
            for _ in range(2):
                self._run(session, None, x)
            events = json.loads(Path(session.end_profiling()).read_text())
        last: dict[str, LayerRun] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                kind = event["args"]["op_name"]
                integer = kind.startswith(INTEGER_OPERATORS)
                last[name] = LayerRun(
                    (_layer_name(name),), kind, "int8" if integer else "f32", kind, event["dur"] / 1e3
                )
        return tuple(last.values())

    def _run(self, session: Any, names: list[str] | None, x: Batch) -> list[Array]:
        """Run a session.

        Raises:
            DataError: an input is missing, or unknown.
            TargetError: an operator cannot run; the error names it.
        """
        given = self._given(x)
        try:
            return session.run(names, given)  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime's own classes are not importable by name in every version
            found = re.search(r"running (\w+) node", str(error))
            what = f"the operator {found[1]} of this network" if found else "this network"
            sizes = ", ".join(str(tuple(array.shape)) for array in given.values())
            raise TargetError(
                f"ONNX Runtime cannot run {what} on an input of shape {sizes} ({str(error).splitlines()[0][:120]}).",
                "Check the size in pipeline.json, or choose the target `reference`, which simulates.",
            ) from error

    def _given(self, x: Batch) -> dict[str, Array]:
        return dict(zip((port.name for port in self.inputs), arrays(x, self.inputs), strict=True))

    def _open(self, settings: dict[str, Any]) -> Any:
        onnxruntime = _module()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.intra_op_num_threads = self._threads
        # or it rounds activations by itself where only the weight is in integers
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        for key, value in settings.items():
            setattr(options, key, value)
        try:
            given = str(self._path) if self._content is None else self._content
            return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes are not importable by name in every version
            reason = str(error).splitlines()[0][:200]
            if "NOT_IMPLEMENTED" in reason:
                raise TargetError(f"ONNX Runtime lacks an operator of this network: {reason}.") from error
            raise ReadError(f"{self._path} is not a model that ONNX Runtime can read: {reason}.") from error


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("The target onnxruntime", EXTRA) from error
    return onnxruntime


def _port(port: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else FREE for size in port.shape[1:])
    return Port(port.name, shape, tuple(not isinstance(size, int) for size in port.shape))


def _layer_name(name: str) -> str:
    """Strip what ONNX Runtime's fusions add to a node's name."""
    for suffix in ("_quant", "_nchwc", "_token"):
        name = name.split(suffix, maxsplit=1)[0]
    return name
