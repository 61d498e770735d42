"""How fast each network of the suite runs: ours beside every peer, interleaved, with the error of each output.

    python benchmarks/versus.py [NAME …] [--threads 2] [--runs 3] [--budget 30] [--only eager nncf ours …]
                                [--throughput] [--json FILE] [--plot FILE]

Contenders: eager PyTorch in float32 and bfloat16, torch.compile, OpenVINO in float32 and bfloat16, NNCF's int8 on
OpenVINO (with either float precision beside its integers), ONNX Runtime and its own static int8, torchao's PT2E for
x86, and ours: the recipe `int8` on OpenVINO, with the faster of both float precisions. Times are medians in
milliseconds, batch 1.

Each network runs in a process of its own. Each row also has the fraction of the measured ceiling: the rate of a chain
of dense int8 convolutions, timed in the same process. SQNR is that of the output against eager float32, over held-out
images. A contender that fails is shown with its message. Measure on a quiet machine: timings lie while others work.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ceiling import ceiling
from microtome import recipes
from microtome.environment import describe
from microtome.progress import Silent
from microtome.runtimes import openvino as target
from microtome.types import Array
from microtome.verbs.deploy import sqnr
from microtome.verbs.placing import measured_placement
from microtome.verbs.timing import Candidate, interleaved
from suite import SUITE, Prepared, prepare

Run = Callable[[Array], Array]
CALIBRATION, HELD_OUT = 8, 8
BATCHES, LEAST_CALLS, THROUGHPUT_SECONDS = (1, 2, 4), 4, 3.0
CONTENDERS = (
    *("eager", "eager_bf16", "compiled", "ov_f32", "ov_bf16", "nncf", "nncf_bf16"),
    *("ort_f32", "ort_int8", "torchao", "ours"),
)
# By OpenMP's default torch's threads spin after each task, and take the processors from the contender after them.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
SHORT_BUDGET = 15.0  # seconds for one interleaved run of all: slow ones take most of it


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
        settings = recipes.Settings()
        if self.minutes:
            found = measured_placement(
                self.subject.network,
                target,
                self.subject.calibration[0],
                threads=self.threads,
                budget=60 * self.minutes,
                progress=Silent(),
            )
            settings = recipes.Settings(readers=found.readers, skip=found.skip)
        network = recipes.run(recipes.recipe("int8", target.capabilities(), settings), self.subject.network, images)
        path = target.export(network, self._place("ours"))
        sessions = {precision: self._session(path, precision) for precision in target.PRECISIONS}
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


def contest(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one network, several times over."""
    threads, only = options.threads[0], options.only
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        this = Contest(name, threads, Path(folder), options.placement_minutes)
        with torch.inference_mode():
            real = [this.subject.network(torch.from_numpy(x)).numpy() for x in this.subject.held_out]
        x = this.subject.held_out[0]
        ready, errors, decibels = {}, {}, {}
        for contender in only:
            try:
                with _silence():
                    run = this.run(contender)
                    outputs = [run(image) for image in this.subject.held_out]
            except Exception as error:  # a peer that fails is a row of the table
                errors[contender] = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]
                )
                continue
            ready[contender] = run
            decibels[contender] = round(float(sqnr(np.concatenate(real), np.concatenate(outputs))), 2)
        everybody = [Candidate(n, "", "", run) for n, run in ready.items()]
        quick = [c for c in everybody if c.name.startswith(("ov", "nncf", "ours"))]
        timed = []
        for _ in range(options.runs):
            slow = interleaved(everybody, x, budget=SHORT_BUDGET)
            fast = interleaved(quick, x, budget=options.budget) if quick else []
            timed.append([{row["name"]: row["latency_ms"] for row in rows} for rows in (slow, fast)])
        rates = {c.name: throughput(c.run, x) for c in quick} if options.throughput else {}
        flop, peak = operations(this.subject), ceiling(len(this.subject.subject.shape) - 1, threads)
    about = {
        "network": name,
        "input": [1, *this.subject.subject.shape],
        "threads": threads,
        "gflop": round(flop / 1e9, 2),
        "sqnr_db": decibels,
        "errors": errors,
        "preparation_s": this.seconds,
        "precision": getattr(this, "precision", None),
        "ceiling_gops": round(peak, 1),
        "throughput": rates,
        "environment": describe(threads),
    }
    return [{**about, "ms": slow | fast, "beside_eager_ms": slow} for slow, fast in timed]


def throughput(run: Run, x: Array) -> dict[str, float]:
    """Images per second at the best batch, one stream per thread."""
    session: Any = run.__self__  # type: ignore[attr-defined]
    rates = {}
    for batch in BATCHES:
        images = np.repeat(x, batch, axis=0)
        begin = time.perf_counter()
        collections.deque(session.stream([images] * LEAST_CALLS), maxlen=0)  # compiles, and says how long one takes
        calls = max(LEAST_CALLS, int(THROUGHPUT_SECONDS * LEAST_CALLS / (time.perf_counter() - begin)))
        begin = time.perf_counter()
        collections.deque(session.stream([images] * calls), maxlen=0)
        rates[batch] = calls * batch / (time.perf_counter() - begin)
    best = max(rates, key=lambda batch: rates[batch])
    return {"batch": best, "per_second": round(rates[best], 2)}


def operations(subject: Prepared) -> float:
    """Multiplications and additions of one inference."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.network(torch.from_numpy(subject.held_out[0]))
    return float(counter.get_total_flops())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of one network as one row: medians over the runs, and the ratio of each."""
    names = runs[0]["ms"]
    row = {
        **runs[0],
        "ms": {n: round(float(np.median([run["ms"][n] for run in runs if n in run["ms"]])), 3) for n in names},
    }
    rate = row["gflop"] * 1e3 / row["ceiling_gops"]
    row["fraction_of_ceiling"] = {n: round(rate / ms, 3) for n, ms in row["ms"].items()}
    row["runs"] = [{"ms": run["ms"], "beside_eager_ms": run["beside_eager_ms"]} for run in runs]
    row["ratios"] = ratios(runs)
    return row


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster ours is: medians over runs of the ratio within each run."""

    def ratio(of: Callable[[dict[str, float]], float | None], key: str) -> float | None:
        found = [of(run[key]) / run[key]["ours"] for run in runs if run[key].get("ours") and of(run[key])]
        return round(float(np.median(found)), 3) if found else None

    def best(*names: str) -> Callable[[dict[str, float]], float | None]:
        return lambda ms: min((ms[n] for n in names if n in ms), default=None)

    return {
        "nncf": ratio(best("nncf"), "ms"),
        "nncf_best": ratio(best("nncf", "nncf_bf16"), "ms"),
        "uniform": ratio(best("ov_f32", "ov_bf16"), "ms"),
        "eager": ratio(best("eager"), "beside_eager_ms"),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table as Markdown."""
    names = [n for n in CONTENDERS if any(n in row["ms"] or n in row["errors"] for row in rows)]
    yield (
        "| network | "
        + " | ".join(names)
        + " | ours / NNCF (best) | / uniform | / eager | SQNR ours, NNCF (dB) | of ceiling |"
    )
    yield "|---" * (len(names) + 6) + "|"
    for row in rows:
        cells = [f"{row['ms'][n]:.2f}" if n in row["ms"] else ("failed" if n in row["errors"] else "–") for n in names]
        times, decibels = row["ratios"], row["sqnr_db"]
        cells += [f"{times['nncf']}× ({times['nncf_best']}×)", f"{times['uniform']}×", f"{times['eager']}×"]
        peer = max((decibels[n] for n in ("nncf", "nncf_bf16") if n in decibels), default=float("nan"))
        cells += [
            f"{decibels.get('ours', float('nan')):.1f}, {peer:.1f}",
            f"{row['fraction_of_ceiling'].get('ours', 0):.0%}",
        ]
        yield f"| {row['network']} | " + " | ".join(cells) + " |"
    for key in ("nncf", "nncf_best", "uniform", "eager"):
        values = [row["ratios"][key] for row in rows if row["ratios"][key]]
        if values:
            yield f"\ngeometric mean against {key}: {np.exp(np.mean(np.log(values))):.3f}, least {min(values):.3f}"
    for row in rows:
        for name, message in row["errors"].items():
            yield f"\n{row['network']}, {name}: {message}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how many times faster than eager float32 each contender is."""
    import matplotlib.pyplot as plt

    names = [
        n
        for n in ("ov_f32", "ov_bf16", "nncf", "nncf_bf16", "ort_int8", "compiled", "ours")
        if any(n in r["ms"] for r in rows)
    ]
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        heights = [
            row["ms"]["eager"] / row["ms"][name] if name in row["ms"] and "eager" in row["ms"] else 0 for row in rows
        ]
        axes.bar(np.arange(len(rows)) + k * width, heights, width, label=name)
    axes.set_xticks(np.arange(len(rows)) + 0.4 - width / 2, [row["network"] for row in rows], rotation=20)
    axes.set_ylabel("times faster than eager float32")
    axes.legend(ncols=len(names), fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SUITE))
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per run for the fast contenders")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--placement-minutes", type=float, default=0.0, help="measure where integers pay; 0 is by rules"
    )
    parser.add_argument("--throughput", action="store_true", help="images per second at the best batch, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(contest(options.names[0], options)))
        return
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        for name in options.names:
            call = [sys.executable, __file__, name, "--one", "--threads", str(threads), "--only", *options.only]
            for option in ("runs", "budget", "placement_minutes"):
                call += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
            call += ["--throughput"] if options.throughput else []
            said = subprocess.run(call, check=False, stdout=subprocess.PIPE, text=True, env=os.environ | PASSIVE)
            if said.returncode:
                print(f"{name}: failed with exit status {said.returncode}", flush=True)
                continue
            runs = json.loads(said.stdout.strip().splitlines()[-1])
            if runs:
                rows.append(merged(runs))
                print(
                    f"{name}, {threads} threads: {rows[-1]['ms']} {rows[-1]['ratios']} {rows[-1]['throughput']}",
                    flush=True,
                )
                if options.json is not None:
                    options.json.write_text(json.dumps({"networks": rows}, indent=1))
    print("\n".join(table(rows)))
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
