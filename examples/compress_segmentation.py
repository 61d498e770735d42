"""Compress a segmentation network in Python.

    python examples/compress_segmentation.py OUT

Runs as it is, on phantom brain slices and the small U-Net of the demo. For your own, put your network, your cohort and
the pipeline that the network was trained with in place of the three.
"""

import sys
import tempfile
from pathlib import Path

import microtome
from microtome.demo.network import demo_network
from microtome.demo.phantom import CLASSES, write_cohort
from microtome.medical.pipeline import Pipeline


def main(out: Path) -> None:
    network = demo_network()  # any nn.Module
    pipeline = Pipeline(  # what the network was trained with
        task="segmentation", classes=CLASSES, grayscale=True, size=(192, 192), normalize="zscore"
    )
    options = microtome.CompressOptions(
        target="openvino",
        pipeline=pipeline,
        calibration_cases=32,
        metric="dice",  # what the verdict rests on …
        margin=0.005,  # … and the loss that is acceptable
        title="U-Net for brain phantoms",
    )
    with tempfile.TemporaryDirectory() as folder:
        cohort = write_cohort(Path(folder), cases=100)  # a folder, an .npz file or a CSV manifest
        result = microtome.compress(network, cohort, out, options=options)

    parent, compressed = result["parent"], result["compressed"]
    for metric, change in result["difference"].items():
        if change["value"] is not None:
            print(f"{metric:24} {change['value']:+.4f}")
    print(f"{parent['latency_ms'] / compressed['latency_ms']:.1f} × faster than eager PyTorch")
    print(f"{parent['bytes'] / compressed['bytes']:.1f} × smaller")
    print(f"{result['integer']['executed']} of {result['integer']['requested']} layers ran in integers")
    for warning in result["warnings"]:
        print("warning:", warning)
    print(result["verdict"]["reason"])
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
