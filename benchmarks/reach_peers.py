"""Our int8 on phones' runtimes beside what their own toolchains make of the same network and images.

    python benchmarks/reach_peers.py litert|executorch [skin chest] [--threads 1] [--json FILE]

LiteRT: litert-torch's conversion and ai-edge-quantizer's `static_wi8_ai8`, calibrated by itself. ExecuTorch:
XNNPACKQuantizer through PT2E, per channel. Both see the calibration images that our recipe `int8` sees. The metric is
that of each one's own output on the held-out cases, minus the float parent's, with an interval by patient; times are
medians in turn. The peers are not among microtome's requirements: `pip install litert-torch`, or the extra
`executorch`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accuracy import Subject
from microtome.deployment.timing import Candidate, interleaved
from microtome.evidence.comparison import streamed
from microtome.methods.base import Context
from microtome.recipes import read, run
from microtome.runtimes import runtime
from microtome.types import Array

Run = Callable[[Array], Array]


def litert_peer(subject: Subject, folder: Path, threads: int) -> tuple[Run, int]:
    """Convert with litert-torch, and quantize with LiteRT's own quantizer."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    module: Any = subject.network.copy().graph_module
    module.train = lambda mode=True: module  # an exported graph refuses both, and the converter asks for them
    module.eval = lambda: module
    path = folder / "float.tflite"
    litert_torch.convert(module, (torch.from_numpy(subject.example),)).export(str(path))
    work = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    name = next(iter(Interpreter(str(path)).get_signature_runner().get_input_details()))
    images = [{name: x.numpy()} for x in subject.calibration]
    work.quantize(work.calibrate({"serving_default": images})).export_model(str(folder / "peer.tflite"))
    opened = Interpreter(str(folder / "peer.tflite"), num_threads=threads)
    opened.allocate_tensors()
    given, returned = opened.get_input_details()[0], opened.get_output_details()[0]

    def call(x: Array) -> Array:
        scale, zero = given["quantization"]
        stored = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8) if scale else x
        opened.set_tensor(given["index"], np.ascontiguousarray(stored))
        opened.invoke()
        scores = opened.get_tensor(returned["index"]).astype(np.float32)
        scale, zero = returned["quantization"]
        scores = (scores - zero) * scale if scale else scores
        return np.ascontiguousarray(scores, np.float32)

    return call, (folder / "peer.tflite").stat().st_size


def executorch_peer(subject: Subject, folder: Path, threads: int) -> tuple[Run, int]:
    """Quantize with XNNPACKQuantizer, and write the program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    del threads  # of the process
    example = (torch.from_numpy(subject.example).clone(memory_format=torch.contiguous_format),)  # no strides of 0
    module = torch.export.export(subject.network.graph_module, example).module()
    chosen = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, chosen)
    with torch.no_grad():
        for x in subject.calibration:
            prepared(x.clone(memory_format=torch.contiguous_format))
    program = torch.export.export(convert_pt2e(prepared), example)
    content = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    (folder / "peer.pte").write_bytes(content)
    loaded = Runtime.get().load_program(content)
    method = loaded.load_method("forward")

    def call(x: Array, keep: Any = (content, loaded)) -> Array:
        del keep
        return np.array(method.execute([torch.from_numpy(x)])[0].numpy())

    return call, len(content)


PEERS = {"litert": ("ai-edge-quantizer", litert_peer), "executorch": ("XNNPACKQuantizer", executorch_peer)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(PEERS))
    parser.add_argument("names", nargs="*", metavar="NAME", default=["skin", "chest"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    module, (peer, make) = runtime(options.target), PEERS[options.target]
    rows = []
    print("| network | quantized by | metric: difference (95 % interval) | ms | bytes |\n|---|---|---|---|---|")
    for name in options.names:
        subject = Subject(name, options.threads)
        with tempfile.TemporaryDirectory() as place:
            ours, theirs = Path(place, "ours"), Path(place, "theirs")
            ours.mkdir()
            theirs.mkdir()
            context = Context(subject.calibration, capabilities=module.capabilities())
            path = module.export(run(read("int8"), subject.network, context), ours)
            session = module.open_session(path, threads=options.threads, precision=module.PRECISIONS[0])
            call, size = make(subject, theirs, options.threads)
            found = {
                "microtome": (session.run, sum(file.stat().st_size for file in module.files(path))),
                peer: (call, size),
            }
            timed = interleaved([Candidate(who, who, "int8", one[0]) for who, one in found.items()], subject.example)
            for (who, (one, bytes_)), time in zip(found.items(), timed, strict=True):
                judged = subject.judge(streamed(one))
                row = {
                    "network": name,
                    "by": who,
                    "metric": subject.judge.metric,
                    "difference": judged.difference.value,
                    "low": judged.difference.low,
                    "high": judged.difference.high,
                    "ms": time["latency_ms"],
                    "bytes": bytes_,
                }
                rows.append(row)
                print(
                    f"| {name} | {who} | {row['metric']} {row['difference']:+.4f} ({row['low']:+.4f} to "
                    f"{row['high']:+.4f}) | {row['ms']:.2f} | {row['bytes']:,} |",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
