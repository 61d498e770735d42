"""What compression itself costs: seconds and peak memory of post-training quantization, ours beside NNCF's defaults.

    python benchmarks/cost.py [NAME …] [--cases 128] [--threads 2] [--json FILE]

Both start from the captured network in memory and end with a model file on disk that OpenVINO reads; both see the same
images, made one by one. Peak memory is that of a process of its own, above what it held before the work began (imports,
the network itself).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from microtome import recipes
from microtome.methods.base import Context
from microtome.runtimes import openvino as target
from suite import SUITE, Prepared, phantoms, prepare

MIB = 1024


class Images:
    """The same phantoms each time, one at a time; making them is not the work that is timed."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        self.count = count
        self._distinct = [torch.from_numpy(x) for x in phantoms(shape, 4, seed=1)]

    def __iter__(self) -> Iterator[torch.Tensor]:
        for k in range(self.count):
            yield self._distinct[k % 4] * (1 + 0.001 * k)

    def __len__(self) -> int:
        return self.count


def ours(subject: Prepared, images: Images, folder: Path, recipe: str) -> dict[str, float]:
    start = time.perf_counter()
    context = Context(images, capabilities=target.capabilities())
    network = recipes.run(recipes.read(recipe), subject.network, context)
    middle = time.perf_counter()
    target.export(network, folder)
    return {"calibrate": middle - start, "export": time.perf_counter() - middle}


def nncf(subject: Prepared, images: Images, folder: Path, recipe: str) -> dict[str, float]:
    import nncf as peer
    import openvino

    from microtome.runtimes.onnx_file import export_onnx

    start = time.perf_counter()
    export_onnx(subject.network, folder / "float.onnx")
    model = openvino.Core().read_model(folder / "float.onnx")
    middle = time.perf_counter()
    quantized = peer.quantize(model, peer.Dataset(images, lambda x: x.numpy()), subset_size=images.count)
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return {"calibrate": time.perf_counter() - middle, "export": middle - start}


CONTENDERS = {"ours": ours, "nncf": nncf}


def measure(name: str, who: str, cases: int, threads: int, recipe: str) -> dict[str, Any]:
    torch.set_num_threads(threads)
    subject = prepare(name, calibration=1, held_out=1)
    images = Images(subject.subject.shape, cases)
    if who == "nncf":
        import nncf as _  # noqa: F401  imports are not the work
    before = _resident()
    peak = _Peak()
    with TemporaryDirectory() as folder, peak:
        seconds = CONTENDERS[who](subject, images, Path(folder), recipe)
    return {
        "network": name,
        "who": who,
        "cases": cases,
        "seconds": {k: round(v, 2) for k, v in seconds.items()} | {"all": round(sum(seconds.values()), 2)},
        "peak_mib": round(peak.highest - before),
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MIB,
    }


class _Peak:
    """The largest resident size while it is open, looked at every 20 ms."""

    def __init__(self) -> None:
        self.highest, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.highest = max(self.highest, _resident())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.highest = max(self.highest, _resident())
        self._done.set()
        self._thread.join()


def _resident() -> float:
    """Resident size of this process in MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SUITE))
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.names[0], options.one, options.cases, options.threads, options.recipe)))
        return
    rows = []
    for name in options.names:
        for who in CONTENDERS:
            call = [sys.executable, __file__, name, "--one", who, "--cases", str(options.cases)]
            call += ["--threads", str(options.threads), "--recipe", options.recipe]
            said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(said.strip().splitlines()[-1]))
            print(rows[-1], flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
