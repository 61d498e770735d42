"""File to file: `microtome predict` beside nnU-Net's own predictor, on this processor.

    python benchmarks/nnunet_speed.py RESULTS PACKAGE IMAGES... --nnunet PYTHON [--mirror] [--repeats 3] [--cube N]

`PYTHON` is an interpreter in which nnunetv2 can be imported. Both predict the same files into label maps; whole
processes are timed in turn, and their peak memory is that of the largest process. With `--cube 192`, each image is
repeated, mirrored, until it fills so many voxels a side. Prints medians, ratios, and the Dice between both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

THEIRS = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

def main():
    folder, images, out, mirror, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    how = {"use_mirroring": mirror == "1", "perform_everything_on_device": False, "device": torch.device("cpu")}
    predictor = nnUNetPredictor(**how)
    predictor.initialize_from_trained_model_folder(folder, use_folds=None)
    predictor.predict_from_files(images, out, num_processes_preprocessing=1, num_processes_segmentation_export=1)

if __name__ == "__main__":  # its workers import this file
    main()
"""


def timed(command: list[str]) -> tuple[float, float]:
    """Return seconds and MiB of a process."""
    done = subprocess.run(["/usr/bin/time", "-v", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    clock = re.search(r"Elapsed .*: (?:(\d+):)?(\d+):([\d.]+)", done.stderr)
    memory = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert clock is not None
    assert memory is not None
    hours, minutes, seconds = clock.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds), int(memory[1]) / 1024


def put(image: Path, folder: Path, cube: int | None) -> None:
    """Copy an image under nnU-Net's name; as a cube, mirrored at its borders, where that is asked for."""
    stem = image.name.removesuffix(".nii.gz").removesuffix("_0000")
    file = folder / f"{stem}_0000.nii.gz"
    if cube is None:
        shutil.copy(image, file)
        return
    loaded = nib.load(image)
    array = np.asarray(loaded.dataobj)[:cube, :cube, :cube]
    filled = np.pad(array, [(0, cube - size) for size in array.shape], mode="symmetric")
    nib.save(nib.Nifti1Image(filled, loaded.affine), file)


def dice(ours: Path, theirs: Path) -> float:
    """Return the mean Dice of all structures and cases between two folders."""
    values = []
    for file in sorted(theirs.glob("*.nii.gz")):
        one, other = (np.asarray(nib.load(folder / file.name).dataobj) for folder in (ours, theirs))
        for label in np.unique(other)[1:]:
            a, b = one == label, other == label
            values.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return statistics.mean(values) if values else float("nan")


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--nnunet", required=True)
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cube", type=int)
    options = parser.parse_args()
    threads = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "in").mkdir()
        for image in options.images:
            put(image, place / "in", options.cube)
        runs: dict[str, list[tuple[float, float]]] = {"microtome": [], "nnU-Net": []}
        (place / "theirs.py").write_text(THEIRS)
        for _ in range(options.repeats):
            shutil.rmtree(place / "ours", ignore_errors=True)
            shutil.rmtree(place / "theirs", ignore_errors=True)
            ours = [sys.executable, "-m", "microtome", "predict", str(options.package), str(place / "in")]
            runs["microtome"].append(timed([*ours, "-o", str(place / "ours")]))
            theirs = [options.nnunet, str(place / "theirs.py"), str(options.folder), str(place / "in")]
            runs["nnU-Net"].append(timed([*theirs, str(place / "theirs"), str(int(options.mirror)), threads]))
        medians = {name: [statistics.median(run[k] for run in found) for k in (0, 1)] for name, found in runs.items()}
        ours_, theirs_ = medians["microtome"], medians["nnU-Net"]
        print(
            json.dumps(
                {
                    "cases": len(options.images),
                    "mirror": options.mirror,
                    "seconds": {name: round(values[0], 2) for name, values in medians.items()},
                    "MiB": {name: round(values[1]) for name, values in medians.items()},
                    "faster": round(theirs_[0] / ours_[0], 2),
                    "memory": round(ours_[1] / theirs_[1], 3),
                    "dice": round(dice(place / "ours", place / "theirs"), 4),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
