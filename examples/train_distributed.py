"""Quantization-aware training in several processes.

    torchrun --nproc-per-node 2 examples/train_distributed.py unet.pt2 cohort/ pipeline.json trained.pt2

Each process trains on its own share of the train cases; gradients are averaged. The result is a graph that
`microtome evaluate` and the runtimes take like any other.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from microtome.batches.calibration import CalibrationBatches
from microtome.batches.training import TrainingBatches, TuningBatches
from microtome.graph import pt2
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.methods.base import Context
from microtome.progress import Silent
from microtome.recipes import read, run
from microtome.runtimes import runtime


def main(model: Path, cases: Path, declared: Path, out: Path, steps: int = 1000) -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    cohort, pipeline = load_cohort(cases), Pipeline.from_json(declared.read_text())
    context = Context(
        CalibrationBatches(cohort, cohort.calibration(32), pipeline, Silent()),
        TrainingBatches(cohort, cohort.train, pipeline, rank=rank, world=world),
        TuningBatches(cohort, pipeline) if cohort.tuning else None,
        capabilities=runtime("openvino").capabilities(),
        sigmoid=pipeline.activation == "sigmoid",
    )
    recipe = read("qat", {"quantize.weight_bits": 4, "quantize.activation_bits": 4, "finetune.steps": steps})
    network = run(recipe, pt2.load(model), context)
    if rank == 0:
        pt2.save(network, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]), *map(int, sys.argv[5:]))
