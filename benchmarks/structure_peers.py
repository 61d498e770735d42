"""Packages beside eager PyTorch and NNCF's int8 of their parent: timed in turn, in one process."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microtome.batches.calibration import CalibrationBatches
from microtome.deployment.timing import Candidate, eager, file_bytes, interleaved
from microtome.graph import pt2
from microtome.medical.cohort import load_cohort
from microtome.models import load_model
from microtome.progress import Silent
from microtome.runtimes import openvino as target
from microtome.runtimes.base import Session
from structure_subjects import Subject

RUNS, SECONDS = 3, 20.0
CALIBRATION_CASES = 32


def contest(packages: Mapping[str, Path], given: Subject, *, threads: int) -> dict[str, Any]:
    """Return medians of RUNS interleaved runs in milliseconds, and how many times faster each package is.

    Args:
        packages: made of one parent, by a name for each; their networks are exported to OpenVINO as it is done today.
        given: the parent, with its cases.
        threads: of every contender.
    """
    import nncf
    import openvino

    loaded = load_model(given.model)
    parent, pipeline = loaded.network, loaded.pipeline
    assert pipeline is not None
    cohort = load_cohort(given.cohort, seed=0)
    cases = cohort.calibration(CALIBRATION_CASES)
    images = [x.numpy() for x in CalibrationBatches(cohort, cases, pipeline, Silent())]
    ours = {name: _exported(path / "network.pt2", threads) for name, path in packages.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = target.export(parent, Path(folder))
        quantized = nncf.quantize(openvino.Core().read_model(path), nncf.Dataset(images))
        peer = Path(folder) / "nncf.xml"
        openvino.save_model(quantized, peer, compress_to_fp16=False)
        sizes = {"eager f32": 4 * parent.parameters, "nncf": file_bytes(target, peer)}
        sessions = {p: target.open_session(peer, threads=threads, precision=p) for p in target.PRECISIONS}
    runs = {"eager f32": eager(parent, threads)} | {name: session.run for name, session in ours.items()}
    runs |= {f"nncf {precision}": session.run for precision, session in sessions.items()}
    x = images[0]
    for run in runs.values():
        run(x)
    timed: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(RUNS):
        for row in interleaved([Candidate(name, "", "", run) for name, run in runs.items()], x, budget=SECONDS):
            timed[row["name"]].append(row["latency_ms"])
    medians = {name: statistics.median(values) for name, values in timed.items()}
    best = min(medians[name] for name in medians if name.startswith("nncf"))
    return {
        "medians_ms": {name: round(value, 3) for name, value in medians.items()},
        "than_eager": {name: round(medians["eager f32"] / medians[name], 2) for name in packages},
        "than_nncf": {name: round(best / medians[name], 2) for name in packages},
        "bytes": sizes,
    }


def _exported(network: Path, threads: int) -> Session:
    """Export a compressed network, and open the file in the float precision in which it is faster."""
    loaded = pt2.load(network)
    with tempfile.TemporaryDirectory() as folder:
        file = target.export(loaded, Path(folder))
        sessions = [target.open_session(file, threads=threads, precision=p) for p in target.PRECISIONS]
    x = np.zeros((1, *loaded.shape), np.float32)
    rows = interleaved([Candidate(str(k), "", "", one.run) for k, one in enumerate(sessions)], x, budget=SECONDS / 4)
    return sessions[int(min(rows, key=lambda row: row["latency_ms"])["name"])]
