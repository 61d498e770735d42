"""What each width costs each reference network, algorithm by algorithm, on held-out cases; one table.

    python benchmarks/accuracy.py [hippocampus skin retina chest chest_vit hippocampus_swin]
                                  [--rows W8A8 W4A8 W4A4 …] [--json FILE] [--out accuracy]

Every figure is the metric of the runtime's own output on the exported file (OpenVINO, int8 kernels), minus the float
parent's on the same cases, with a 95 % interval by patient. A cell that is in the output folder is not computed again;
several processes may share the folder. Accuracy does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from microtome.batches.calibration import CalibrationBatches
from microtome.deployment.deploy import sqnr
from microtome.deployment.timing import eager
from microtome.evidence.candidates import Judge
from microtome.graph import pt2
from microtome.graph.choosing.budget import WIDTHS, budget_of_bits, choose
from microtome.graph.choosing.sensitivity import Sensitivity, measure
from microtome.graph.network import Network
from microtome.graph.packed import save_packed, theoretical_bytes
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.progress import Silent
from microtome.recipes import read, run
from microtome.recipes.files import names
from microtome.runtimes import openvino as target
from microtome.types import Array, Bits

HERE = Path(__file__).parent
NAMES = ("hippocampus", "skin", "retina", "chest")
TRANSFORMERS = ("chest_vit", "hippocampus_swin")
CALIBRATION_CASES = 32
TUNING_BATCHES = 16

# Training: images per batch, flips that keep an image plausible.
TRAINING = {
    "hippocampus": {"batch": 2, "flips": (0,)},
    "skin": {"batch": 4, "flips": (0, 1)},
    "retina": {"batch": 1, "flips": (0, 1)},
    "chest": {"batch": 6, "flips": (1,)},
    "chest_vit": {"batch": 8, "flips": (1,)},
    "hippocampus_swin": {"batch": 2, "flips": (0,)},
}
STEPS = {"hippocampus": 300, "skin": 400, "chest": 400}
BINARY_STEPS = {"hippocampus": 450, "skin": 400, "chest": 400}
# Reconstruction: (steps per block, images per step).
RECONSTRUCTION = {"hippocampus": (150, 1), "skin": (150, 1), "retina": (60, 1), "chest": (200, 1)}


@dataclass(frozen=True)
class Cell:
    """One figure of the table: a row (what is quantized to how many bits), and the algorithm, with what it is told."""

    row: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    average_bits: float | None = None


LEARNED = ("adaround", "reconstruct")  # each is named as its method
POST_TRAINING = ("minmax", "ranges", "int8", "equalized", "gptq", "adaround", "reconstruct")
TRAINED = {
    "W4A4 QAT": ("qat", 4, 4),
    "W2A8 QAT": ("qat", 2, 8),
    "W2A8 mid-rise": ("w2", 2, 8),
    "ternary": ("ternary", 2, 8),
    "binary": ("binary", 2, 8),
}
MEASURED = {"hippocampus": 6, "skin": 6, "retina": 2, "chest": 8}  # images that sensitivities are measured on
AVERAGE_BITS = (3, 4, 5, 6)  # of weights: mixed precision against uniform widths at equal bytes, activations at 8

# The loss that each row allows, and the recipe that stands for us in it; both fixed before anything was measured.
ALLOWED = {
    "W8A8": {"hippocampus": 0.001, "skin": 0.001, "retina": 0.002, "chest": 0.002},
    "W4A8": {"hippocampus": 0.004, "skin": 0.005, "retina": 0.005, "chest": 0.005},
    "W4A4": {"hippocampus": 0.015, "skin": 0.02, "retina": 0.02, "chest": 0.015},
    "W4A4 QAT": {"hippocampus": 0.005, "skin": 0.007, "chest": 0.005},
    "W2A8 QAT": {"hippocampus": 0.015, "skin": 0.015, "chest": 0.01},
    "W2A8 mid-rise": {"hippocampus": 0.015, "skin": 0.015, "chest": 0.01},
    "ternary": {"hippocampus": 0.02, "skin": 0.02, "chest": 0.015},
    "binary": {"hippocampus": 0.04, "skin": 0.04, "chest": 0.03},
}
OURS = {"W8A8": "int8", "W4A8": "reconstruct", "W4A4": "reconstruct"}


def cells(name: str) -> Iterator[Cell]:
    """Yield the cells of a network."""
    if name in TRANSFORMERS:
        for chosen in ("nncf", "int8", "transformer", "minmax", "smooth"):
            yield Cell("W8A8", chosen)
        return
    for row, weight, activation in (("W8A8", 8, 8), ("W4A8", 4, 8), ("W4A4", 4, 4)):
        steps, samples = RECONSTRUCTION[name]
        for chosen in POST_TRAINING:
            learned = {f"{chosen}.steps": steps, f"{chosen}.samples": samples} if chosen in LEARNED else {}
            yield Cell(row, chosen, widths(weight, activation) | learned)
        if row == "W8A8":
            yield Cell(row, "nncf")
    for bits in AVERAGE_BITS:
        uniform = {"quantize.weight_bits": bits, "quantize.end_bits": None}
        yield Cell(f"{bits} bits of weight", "int8", uniform)
        yield Cell(f"{bits} bits of weight", "mixed", uniform, bits)
    for row, (chosen, weight, activation) in TRAINED.items():
        if name in ALLOWED[row]:
            steps = (BINARY_STEPS if row == "binary" else STEPS)[name]
            yield Cell(row, chosen, widths(weight, activation) | {"finetune.steps": steps})


def widths(weight: int, activation: int) -> dict[str, Any]:
    """Return what a recipe is told of widths."""
    return {"quantize.weight_bits": weight, "quantize.activation_bits": activation}


class Subject:
    """A reference network with its cohort, its float parent on the runtime, and its held-out cases."""

    def __init__(self, name: str, threads: int) -> None:
        path = reference(name)
        self.name, self.threads = name, threads
        self.cohort: Cohort = load_cohort(
            path.with_name("manifest.csv"), seed=0, **({"tuning": 0.0} if name == "retina" else {})
        )
        self.pipeline = Pipeline.from_json(path.with_name("pipeline.json").read_text())
        self.network = pt2.load(path)
        cases = self.cohort.calibration(CALIBRATION_CASES)
        self.calibration = CalibrationBatches(self.cohort, cases, self.pipeline, Silent())
        self.example: Array = next(iter(self.calibration)).numpy()
        self.sensitivities: tuple[Sensitivity, ...] | None = None
        parent = eager(self.network, threads)
        self.real = parent(self.example)
        self.judge = Judge(self.session(self.network).stream, self.cohort, self.cohort.evaluation, self.pipeline)

    def session(self, network: Network) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return target.open_session(target.export(network, Path(folder)), threads=self.threads)

    def context(self) -> Context:
        """What recipes read; tuning images come from patients that are neither trained on nor evaluated."""
        from microtome.batches.training import TrainingBatches

        options = TRAINING[self.name]
        cases = self.cohort.train
        tuning = self.cohort.tuning[:TUNING_BATCHES] or cases[: len(cases) // 4]
        if not self.cohort.tuning:
            cases = cases[len(cases) // 4 :]
        training = TrainingBatches(self.cohort, cases, self.pipeline, seed=0, augment=True, **options)
        return Context(
            self.calibration,
            training,
            CalibrationBatches(self.cohort, tuning, self.pipeline, Silent()),
            capabilities=target.capabilities(),
            sigmoid=self.pipeline.activation == "sigmoid",
        )

    def widths(self, average_bits: float) -> Mapping[str, Bits]:
        """The best widths of layers at an average width, from what each layer loses on a few calibration images."""
        if self.sensitivities is None:
            folded = FoldBatchNorm().run(self.network)
            batches = list(itertools.islice(self.calibration, MEASURED[self.name]))
            pairs = [(bits, 8) for bits in WIDTHS]
            sigmoid = self.pipeline.activation == "sigmoid"
            self.sensitivities = measure(folded, target.capabilities(), batches, widths=pairs, sigmoid=sigmoid)
        return choose(self.sensitivities, budget_of_bits(self.sensitivities, average_bits)).layer_bits

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Compress, export, run on the held-out cases."""
        start = time.perf_counter()
        result: dict[str, Any] = {"network": self.name, "row": cell.row, "recipe": cell.recipe}
        if cell.recipe == "nncf":
            session = nncf_session(self)
        else:
            settings, name = cell.settings, cell.recipe
            if cell.average_bits is not None:  # measured once for all budgets; the recipe measures each time
                name, settings = "int8", {**settings, "quantize.layer_bits": self.widths(cell.average_bits)}
            network = run(read(name, settings), self.network, self.context())
            session = self.session(network)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "weights.safetensors"
                save_packed(network, file)
                result |= {"packed_bytes": file.stat().st_size, "theoretical_bytes": theoretical_bytes(network)}
            runs = session.layer_runs(self.example)
            names = [layer.name for layer in network.layers]
            executed = [any(r.runs(name) and r.executed == "int8" for r in runs) for name in names]
            result |= {"layers": len(names), "int8_layers": sum(executed)}
        result["seconds"] = round(time.perf_counter() - start, 1)
        result["sqnr_db"] = sqnr(self.real, session.run(self.example))
        judged = self.judge(session.stream)
        result |= {
            "metric": self.judge.metric,
            "parent": judged.parent,
            "value": judged.value,
            "difference": judged.difference.value,
            "low": judged.difference.low,
            "high": judged.difference.high,
            "agreement": judged.agreement,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        return result


def nncf_session(subject: Subject) -> Any:
    """Quantize with NNCF's defaults on the same calibration images."""
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = target.export(subject.network, Path(folder))
        model = openvino.Core().read_model(path)
        dataset = nncf.Dataset([x.numpy() for x in subject.calibration])
        quantized = nncf.quantize(model, dataset)
        openvino.save_model(quantized, Path(folder) / "nncf.xml", compress_to_fp16=False)
        return target.open_session(Path(folder) / "nncf.xml", threads=subject.threads)


def reference(name: str) -> Path:
    """Return the path of a reference network; it is trained if it is not cached."""
    call = [sys.executable, str(HERE / "references.py"), name]
    said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Path(said.strip().splitlines()[-1])


def load_cells(folder: Path) -> list[dict[str, Any]]:
    """Return what is in the output folder."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def table(done: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table per network."""
    for name in dict.fromkeys(cell["network"] for cell in done):
        mine = [cell for cell in done if cell["network"] == name]
        metric, parent = mine[0]["metric"], mine[0]["parent"]
        yield f"\n### {name} ({metric} of the float network {parent:.4f})\n"
        yield "| row | algorithm | difference (95 % interval) | allowed | labels kept | SQNR | bytes | seconds |"
        yield "|---|---|---|---|---|---|---|---|"
        order = [*ALLOWED, *(cell["row"] for cell in mine)]
        for cell in sorted(mine, key=lambda c: order.index(c["row"])):
            allowed = ALLOWED.get(cell["row"], {}).get(name)
            ours = OURS.get(cell["row"], cell["recipe"]) == cell["recipe"]
            met = "" if allowed is None or not ours else (" ✔" if cell["difference"] >= -allowed else " ✘")
            size = "–"
            if "packed_bytes" in cell:
                size = f"{cell['packed_bytes']:,} / {cell['packed_bytes'] / cell['theoretical_bytes'] - 1:+.1%}"
            yield " | ".join(
                [
                    f"| {cell['row']}",
                    f"**{cell['recipe']}**" if ours else cell["recipe"],
                    f"{cell['difference']:+.4f} ({cell['low']:+.4f} to {cell['high']:+.4f}){met}",
                    "–" if allowed is None else f"{-allowed}",
                    f"{cell['agreement']:.3%}",
                    f"{cell['sqnr_db']:.1f} dB",
                    size,
                    f"{cell['seconds']:.0f} |",
                ]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*NAMES, *TRANSFORMERS])
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--recipes", nargs="*", help="only these recipes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--json", type=Path, help="also write all cells to this file")
    parser.add_argument("--print", action="store_true", dest="only_print", help="compute nothing, print what is there")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True, parents=True)
    torch.set_num_threads(options.threads)
    for name in () if options.only_print else options.names:
        subject = None
        for cell in cells(name):
            file = options.out / f"{name}-{cell.row.replace(' ', '_')}-{cell.recipe}.json"
            wanted = not options.rows or cell.row in options.rows
            known = cell.recipe == "nncf" or cell.recipe in names()
            if file.exists() or not wanted or not known or (options.recipes and cell.recipe not in options.recipes):
                continue
            subject = subject or Subject(name, options.threads)
            result = subject.measure(cell)
            file.write_text(json.dumps(result, indent=1))
            print(name, cell.row, cell.recipe, f"{result['difference']:+.4f}", f"{result['seconds']} s", flush=True)
            gc.collect()
    done = load_cells(options.out)
    print("\n".join(table(done)))
    if options.json is not None:
        options.json.write_text(json.dumps({"cells": done}, indent=1))


if __name__ == "__main__":
    main()
