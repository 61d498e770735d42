"""Peak memory of `compress` with few and with many calibration cases: calibration streams, so both must be alike.

python benchmarks/memory.py MODEL COHORT [--cases 32 256]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("cohort")
    parser.add_argument("--cases", type=int, nargs="+", default=[32, 256])
    options, rest = parser.parse_known_args()
    peaks = {}
    for cases in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            call = ["compress", options.model, options.cohort, "-o", str(Path(folder) / "package"), "--json"]
            call += ["--calibration-cases", str(cases), *rest]
            said = subprocess.run(
                [sys.executable, "-m", "microtome", *call], check=False, stdout=subprocess.PIPE, text=True
            )
            result = json.loads(said.stdout)
        peaks[result["counts"]["calibration"]] = result["memory"]["compress_peak_mib"]
        print(
            f"{result['counts']['calibration']:5d} calibration cases: {peaks[result['counts']['calibration']]:.1f} MiB"
        )
    print(f"largest / smallest: {max(peaks.values()) / min(peaks.values()):.4f}")


if __name__ == "__main__":
    main()
