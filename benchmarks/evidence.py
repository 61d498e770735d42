"""Compress the reference networks and print one table: what was lost, and what was gained.

    python benchmarks/evidence.py [hippocampus skin chest retina meshnet] [--target openvino] [--out evidence]

Packages are kept in the output folder; a network whose package lies there already is not compressed again. Times are
only worth something on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("hippocampus", "skin", "chest", "retina", "meshnet")
DATA = HERE.parents[1] / "shared" / "data"

# The published networks come with few or no cases of their own. W-Net: 8 of the 28 images calibrate, 20 are evaluated.
# MeshNet: there is one head and no reference, so that it calibrates as well; the package warns of that.
EXTRA = {
    "retina": ["--tuning", "0"],
    "meshnet": ["--calibration", str(DATA / "brain" / "t1_crop.nii.gz"), "--evaluation", "1", "--precision", "f32"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    for name in options.names or NAMES:
        package = options.out / f"{name}-{options.target}"
        if not package.exists():
            network = _reference(name)
            call = ["compress", str(network), str(network.with_name("manifest.csv")), "-o", str(package)]
            call += ["--target", options.target, "--threads", str(options.threads), *EXTRA.get(name, [])]
            status = subprocess.run([sys.executable, "-m", "microtome", *call], check=False).returncode
            if status not in (0, 1):
                raise SystemExit(status)
        print(_row(name, json.loads((package / "result.json").read_text())), flush=True)


def _reference(name: str) -> Path:
    """Return the path of a reference network's .pt2; it is trained if it is not cached."""
    call = [sys.executable, str(HERE / "references.py"), name]
    said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Path(said.strip().splitlines()[-1])


def _row(name: str, result: dict[str, Any]) -> str:
    """Return one line of a Markdown table."""
    metric = result["verdict"]["metric"]
    parent, ours = result["parent"], result["compressed"]
    values = [side["metrics"].get(metric, {}).get("value") for side in (parent, ours)]
    change = result["difference"].get(metric) or {}
    agreement = result["agreement"]["value"]
    cells = [
        name,
        metric,
        " → ".join("–" if v is None else f"{v:.4f}" for v in values),
        "–"
        if change.get("value") is None
        else f"{change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})",
        {True: "non-inferior", False: "inferior", None: "undecided"}[result["verdict"]["non_inferior"]],
        f"{agreement:.4%}",
        f"{result['integer']['executed']}/{result['integer']['requested']}",
        f"{parent['bytes'] / ours['bytes']:.2f}×",
        f"{parent['latency_ms'] / ours['latency_ms']:.2f}×",
        *(
            f"{run['latency_ms'] / ours['latency_ms']:.2f}×"
            for run in result["runs"]
            if run["runtime"] == result["target"] and not run.get("compressed")
        ),
        f"{ours['latency_ms']:.2f} ms",
        f"{next(iter(result['memory'].values())):.0f} MiB",
        f"{result['parity']['simulated_vs_f32_db']:.1f} dB",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
