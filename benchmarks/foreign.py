"""The networks of the suite by way of ONNX: exported by PyTorch, read again, and compared with those captured directly.

    python benchmarks/foreign.py                      # outputs, layers and grids of all ten
    python benchmarks/foreign.py unet_2d --time       # int8 in OpenVINO too, in one run, alternating (a quiet machine)
    python benchmarks/foreign.py --exporter script    # by TorchScript's old exporter, where torch still has it

Each line: largest difference of the outputs (share of the largest), layers, quantizers after `int8`, and where they
differ, the operators that only one of both has; with `--time` the medians in milliseconds and their ratio.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from microtome import recipes
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.quantizers import quantizers
from microtome.graph.quiet import quiet
from microtome.methods.base import Context
from microtome.models import load_model
from microtome.runtimes import openvino as target
from microtome.runtimes.base import Session
from microtome.types import Array
from suite import SUITE, phantoms, prepare

SMALL = {
    "unet_3d": (4, 32, 32, 32),
    "dynunet": (1, 32, 32, 32),
    "segresnet": (4, 32, 32, 32),
    "swin_unetr": (1, 64, 64, 64),
}
OPSET = 20


def exported(module: nn.Module, shape: tuple[int, ...], path: Path, exporter: str) -> Path:
    """Write a module as PyTorch does: batch free."""
    example = torch.zeros(1, *shape)
    with quiet(), torch.no_grad():
        if exporter == "script":
            torch.onnx.export(module, (example,), str(path), dynamo=False, opset_version=17)
        else:
            dims = ({0: torch.export.Dim.DYNAMIC},)
            example = torch.zeros(2, *shape)
            torch.onnx.export(
                module, (example,), str(path), dynamo=True, opset_version=OPSET, dynamic_shapes=dims, verbose=False
            )
    return path


def operators(network: Network) -> collections.Counter[str]:
    """Count the operators of a graph."""
    nodes = network.graph_module.graph.nodes
    return collections.Counter(str(node.target).removeprefix("aten.") for node in nodes if node.op == "call_function")


def compressed(network: Network, images: Sequence[Array]) -> Network:
    """Return the network as `int8` for OpenVINO makes it."""
    batches = [torch.from_numpy(image) for image in images]
    return recipes.run(recipes.read("int8"), network, Context(batches, capabilities=target.capabilities()))


def line(name: str, folder: Path, options: argparse.Namespace) -> str:
    """Compare one network, and say how it went."""
    subject = SUITE[name]
    shape = subject.shape if options.time else SMALL.get(name, subject.shape)
    if subject.build is None:
        prepared = prepare(name, calibration=2, held_out=1)
        direct, images = prepared.network, (*prepared.calibration, *prepared.held_out)
        module: nn.Module = direct.graph_module
    else:
        torch.manual_seed(0)
        module = subject.build().eval()
        images = tuple(phantoms(shape, 3, seed=0))
        direct = capture(module, shape)
    path = exported(module, shape, folder / f"{name}.onnx", options.exporter)
    again = load_model(path, input_shape=shape).network
    image = torch.from_numpy(images[-1])
    with torch.no_grad():
        wanted, found = direct(image), again(image)
    off = float((wanted - found).abs().max() / wanted.abs().max())
    pair = [compressed(network, images[:2]) for network in (direct, again)]
    layers, grids = [len(network.layers) for network in pair], [len(list(quantizers(network))) for network in pair]
    said = f"{name}: outputs differ by {off:.1e} of the largest, {layers[1]} layers ({layers[0]} directly), "
    said += f"{grids[1]} quantizers ({grids[0]} directly)"
    with torch.no_grad():
        errors = [
            float((network(image) - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()) for network in pair
        ]
    said += f", int8 off by {errors[1]:.4f} ({errors[0]:.4f} directly)"
    kinds = [operators(network) for network in pair]
    more, less = kinds[1] - kinds[0], kinds[0] - kinds[1]
    said += (
        f"\n    only by ONNX: {dict(more)}\n    only directly: {dict(less)}" if more or less else ", the same operators"
    )
    if options.time:
        sessions = []
        for which, network in enumerate(pair):
            place = folder / str(which)
            place.mkdir()
            sessions.append(
                target.open_session(target.export(network, place), threads=options.threads, precision="f32")
            )
        times = medians(sessions, images[-1], options.rounds)
        said += f"\n    int8 in OpenVINO: {times[1]:.2f} ms, {times[0]:.2f} ms directly ({times[1] / times[0]:.2f}×)"
    return said


def medians(sessions: Sequence[Session], image: Array, rounds: int) -> list[float]:
    """Time sessions in turn, in milliseconds."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for place, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(image)
            times[place].append(1000 * (time.perf_counter() - start))
    return [statistics.median(each) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(SUITE)}")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--exporter", choices=("dynamo", "script"), default="dynamo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.names or SUITE:
        with tempfile.TemporaryDirectory() as folder:
            print(line(name, Path(folder), options), flush=True)


if __name__ == "__main__":
    main()
