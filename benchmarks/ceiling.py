"""The most that the machine's int8 units do on dense convolutions: what networks are measured against."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from microtome import recipes
from microtome.deployment.timing import Candidate, interleaved
from microtome.graph.capture import capture
from microtome.methods.base import Context
from microtome.runtimes import openvino as target

LAYERS = 6
CHANNELS, SIZE = {2: 256, 3: 128}, {2: 56, 3: 24}


def ceiling(dims: int, threads: int, *, budget: float = 3.0) -> float:
    """Return operations per second, in 10⁹, of a chain of 3×3(×3) convolutions with ReLU on OpenVINO in int8."""
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    channels, size = CHANNELS[dims], SIZE[dims]
    layers = [m for _ in range(LAYERS) for m in (convolution(channels, channels, 3, padding=1), nn.ReLU())]
    network = capture(nn.Sequential(*layers).eval(), (channels, *[size] * dims))
    x = np.random.default_rng(0).standard_normal((1, channels, *[size] * dims), dtype=np.float32)
    context = Context([torch.from_numpy(x)], capabilities=target.capabilities())
    with TemporaryDirectory() as folder:
        path = target.export(recipes.run(recipes.read("minmax"), network, context), Path(folder))
        session = target.open_session(path, threads=threads)
        session.run(x)
        row = interleaved([Candidate("chain", "", "", session.run)], x, budget=budget)[0]
    operations = 2 * LAYERS * channels**2 * 3**dims * size**dims
    return operations / row["latency_ms"] / 1e6
