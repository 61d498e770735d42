"""Who runs in file_to_file.py: each goes from image files to label files, its own way, and times its stages."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microtome.graph import pt2

# Nothing heavy is imported here: a process inherits the peak memory of the one that starts it.


class Clock:
    """Seconds of each stage of each case."""

    def __init__(self, begin: float) -> None:
        """All is loaded; `begin` is when the process began to."""
        self.laps: dict[str, list[float]] = {}
        self.loaded, self.start = time.time(), time.perf_counter() - begin
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps.setdefault(name, []).append(now - self._last)
        self._last = now

    def result(self) -> dict[str, Any]:
        stages = {name: 1e3 * statistics.median(values) for name, values in self.laps.items()}
        return {"start": self.start, "loaded": self.loaded, "stages": stages}


def ours(options: argparse.Namespace, files: list[Path], out: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    from microtome.package import open_package
    from microtome.verbs.predict import predict

    open_package(options.package, threads=options.threads)  # `predict` opens it again: that time counts as `first`
    clock = Clock(begin)
    result = predict(options.package, files, out, threads=options.threads)
    if result["failed"]:
        sys.exit(result["failed"][0]["problem"])
    return {**clock.result(), "stages": result["stages"]}


def plain(options: argparse.Namespace, files: list[Path], out: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    from microtome.medical.infer import finish_segmentation
    from microtome.medical.prepare import prepare
    from microtome.medical.read import read_image
    from microtome.medical.write import write_labels
    from microtome.package import open_package

    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the plain order is what tests judge by
    from plain import scores

    package = open_package(options.package, threads=options.threads)
    clock = Clock(begin)
    for file in files:
        image = read_image([file])
        clock.lap("read")
        prepared = prepare(image, package.pipeline)
        clock.lap("prepare")
        output = scores(package.session.run, prepared, package.pipeline)
        clock.lap("infer")
        labels = finish_segmentation(output, prepared, package.pipeline)
        clock.lap("finish")
        write_labels(labels, image, out / file.name)
        clock.lap("write")
    return clock.result()


def monai(network: Callable[[argparse.Namespace], Any]) -> Callable[..., dict[str, Any]]:
    def run(options: argparse.Namespace, files: list[Path], out: Path) -> dict[str, Any]:
        begin = time.perf_counter()
        import torch
        from monai.data import decollate_batch
        from monai.inferers import SlidingWindowInferer

        torch.set_num_threads(options.threads)
        pipeline = json.loads((options.package / "pipeline.json").read_text())
        load, before, after = _transforms(pipeline, out)
        inferer = SlidingWindowInferer(pipeline["patch"], sw_batch_size=1, overlap=pipeline["overlap"], mode="gaussian")
        model = network(options)
        clock = Clock(begin)
        with torch.inference_mode():
            for file in files:
                data = load({"image": str(file)})
                clock.lap("read")
                data = before(data)
                clock.lap("prepare")
                data["pred"] = inferer(data["image"][None], model)
                clock.lap("infer")
                data["pred"] = decollate_batch(data["pred"])[0]
                after(data)
                clock.lap("finish and write")
        return clock.result()

    return run


def _transforms(pipeline: dict[str, Any], out: Path) -> tuple[Any, Any, Any]:
    """Reading; what the pipeline declares; and the way back, argmax first where nothing is interpolated."""
    from monai import transforms as t

    known = {"none", "zscore", "zscore_nonzero", "minmax"}
    strange = [key for key in ("crop", "size", "percentiles") if pipeline[key]]
    if strange or pipeline["normalize"] not in known or not pipeline["patch"] or pipeline["activation"] == "sigmoid":
        sys.exit(f"The MONAI contender has no form of this pipeline: {strange or pipeline['normalize']}.")
    steps: list[Any] = []
    if pipeline["orientation"]:
        steps.append(t.Orientationd("image", axcodes=pipeline["orientation"], labels=None))
    if pipeline["spacing"]:
        steps.append(t.Spacingd("image", pixdim=pipeline["spacing"], mode="bilinear"))
    if pipeline["window"]:
        low, high = pipeline["window"]
        scaled = (0.0, 1.0) if pipeline["normalize"] == "minmax" else (low, high)
        steps.append(t.ScaleIntensityRanged("image", low, high, *scaled, clip=True))
    elif pipeline["normalize"] == "minmax":
        steps.append(t.ScaleIntensityd("image", channel_wise=True))
    if pipeline["normalize"].startswith("zscore"):
        nonzero = pipeline["normalize"] == "zscore_nonzero"
        steps.append(t.NormalizeIntensityd("image", nonzero=nonzero, channel_wise=True))
    before = t.Compose(steps)
    back = t.Invertd("pred", before, "image", nearest_interp=not pipeline["spacing"], to_tensor=True)
    ways = [back] if pipeline["orientation"] or pipeline["spacing"] else []
    best = t.AsDiscreted("pred", argmax=True)
    save = t.SaveImaged(
        "pred", output_dir=out, output_postfix="", output_dtype="uint8", separate_folder=False, print_log=False
    )
    after = t.Compose([*ways, best, save] if pipeline["spacing"] else [best, *ways, save])
    return t.Compose([t.LoadImaged("image"), t.EnsureChannelFirstd("image")]), before, after


def openvino_model(options: argparse.Namespace) -> Any:
    """The package's file as a function of torch tensors."""
    import openvino
    import torch

    session = json.loads((options.package / "result.json").read_text())["session"]
    if session["runtime"] != "openvino":
        sys.exit("The MONAI contender runs OpenVINO packages only.")
    pipeline = json.loads((options.package / "pipeline.json").read_text())
    model = openvino.Core().read_model(options.package / session["file"])
    model.reshape([1, pipeline["channels"], *pipeline["patch"]])
    settings = {
        "INFERENCE_PRECISION_HINT": session["precision"],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": options.threads,
    }
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda x: torch.from_numpy(compiled(x.as_tensor().numpy() if hasattr(x, "as_tensor") else x.numpy())[0])


def eager_model(options: argparse.Namespace) -> Any:

    network = pt2.load(options.reference / "network.pt2")
    return lambda x: network(x.as_tensor() if hasattr(x, "as_tensor") else x)


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": ours,
    "monai_int8": monai(openvino_model),
    "monai_f32": monai(eager_model),
    "plain": plain,
}
