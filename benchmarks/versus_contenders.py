"""Who runs in versus.py: each makes one network ready, its own way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from microtome import recipes
from microtome.deployment.placement import measured_placement
from microtome.deployment.timing import Candidate, interleaved
from microtome.methods.base import Context
from microtome.progress import Silent
from microtome.runtimes import openvino as target
from microtome.types import Array
from suite import SUITE, Prepared, prepare

Run = Callable[[Array], Array]
CALIBRATION = 8
HELD_OUT = 64  # images; two scores each say too little in a few. Volumes: 2, of a million voxels each
CONTENDERS = (
    *("eager", "eager_bf16", "compiled", "ov_f32", "ov_bf16", "nncf", "nncf_bf16"),
    *("ort_f32", "ort_int8", "torchao", "ours"),
)


class Contest:
    """One network with everybody who runs it."""

    def __init__(self, name: str, threads: int, folder: Path, minutes: float) -> None:
        self.minutes = minutes
        self.subject: Prepared = prepare(
            name, calibration=CALIBRATION, held_out=HELD_OUT if len(SUITE[name].shape) < 4 else 2
        )
        self.threads, self.folder = threads, folder
        self.seconds: dict[str, float] = {}
        self._float: Path | None = None

    def exported(self) -> Path:
        """The float network as OpenVINO reads it."""
        if self._float is None:
            self._float = self._place("float")
            self._float = target.export(self.subject.network, self._float)
        return self._float

    def run(self, name: str) -> Run:
        """Make a contender ready."""
        start = time.perf_counter()
        run: Run = getattr(self, f"_{name}")()
        self.seconds[name] = round(time.perf_counter() - start, 2)
        return run

    def _eager(self) -> Run:
        return _torch(self.subject.network.graph_module)

    def _eager_bf16(self) -> Run:
        module = self.subject.module or self.subject.network.graph_module

        def run(x: Array) -> Array:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                output: Array = module(torch.from_numpy(x)).float().numpy()
            return output

        return run

    def _compiled(self) -> Run:
        module = self.subject.module or self.subject.network.graph_module
        return _torch(torch.compile(module, dynamic=False))

    def _ov_f32(self) -> Run:
        return self._session(self.exported(), "f32")

    def _ov_bf16(self) -> Run:
        return self._session(self.exported(), "bf16")

    def _nncf(self) -> Run:
        return self._session(self._quantized_by_nncf(), "f32")

    def _nncf_bf16(self) -> Run:
        return self._session(self._quantized_by_nncf(), "bf16")

    def _quantized_by_nncf(self) -> Path:
        import nncf
        import openvino

        path = self.folder / "nncf.xml"
        if not path.exists():
            model = openvino.Core().read_model(self._onnx())
            openvino.save_model(
                nncf.quantize(model, nncf.Dataset(list(self.subject.calibration))), path, compress_to_fp16=False
            )
        return path

    def _onnx(self) -> Path:
        """The float network as ONNX, written by torch: what the peers start from."""
        from microtome.runtimes.onnx_file import export_onnx

        path = self.folder / "plain.onnx"
        if not path.exists():
            export_onnx(self.subject.network, path)
        return path

    def _ort_f32(self) -> Run:
        return _onnxruntime(self._onnx(), self.threads)

    def _ort_int8(self) -> Run:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, images: tuple[Array, ...]) -> None:
                self._images = iter(images)

            def get_next(self) -> dict[str, Array] | None:
                image = next(self._images, None)
                return None if image is None else {"input": image}

        ready, path = self.folder / "ready.onnx", self.folder / "ort_int8.onnx"
        quant_pre_process(str(self._onnx()), str(ready), skip_symbolic_shape=True)
        reader = Reader(self.subject.calibration)
        quantize_static(str(ready), str(path), reader, quant_format=QuantFormat.QDQ, per_channel=True)
        return _onnxruntime(path, self.threads)

    def _torchao(self) -> Run:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        module = self.subject.module
        if module is None:
            raise RuntimeError("needs the module")
        example = torch.from_numpy(self.subject.calibration[0])
        exported = torch.export.export(module.eval(), (example,)).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for image in self.subject.calibration:
            prepared(torch.from_numpy(image))
        return _torch(torch.compile(convert_pt2e(prepared), dynamic=False))

    def _ours(self) -> Run:
        images = [torch.from_numpy(x) for x in self.subject.calibration]
        context = Context(images, capabilities=target.capabilities())
        recipe, precisions = recipes.read("int8"), target.PRECISIONS
        if self.minutes:
            found = measured_placement(
                self.subject.network,
                target,
                self.subject.calibration[0],
                threads=self.threads,
                budget=60 * self.minutes,
                progress=Silent(),
            )
            told = recipe.with_fields(readers=found.readers, skip=found.skip)
            recipe = recipes.read("f32") if found.in_float else told
            precisions = (found.precision,)
        network = recipes.run(recipe, self.subject.network, context)
        path = target.export(network, self._place("ours"))
        sessions = {precision: self._session(path, precision) for precision in precisions}
        x = self.subject.calibration[0]
        for run in sessions.values():
            run(x)
        rows = interleaved([Candidate(p, "", p, run) for p, run in sessions.items()], x, budget=5.0)
        self.precision = min(rows, key=lambda row: row["latency_ms"])["name"]
        return sessions[self.precision]

    def _session(self, path: Path, precision: str) -> Run:
        return target.open_session(path, threads=self.threads, precision=precision).run

    def _place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        return place


def _torch(module: Any) -> Run:
    def run(x: Array) -> Array:
        with torch.inference_mode():
            output: Array = module(torch.from_numpy(x)).numpy()
        return output

    return run


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"input": x})[0]
