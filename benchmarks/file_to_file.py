"""From image files to label files: `predict` beside MONAI's pipeline around the same network, with memory.

    python benchmarks/file_to_file.py [--network hippocampus] [--volumes small large] [--cases 40 3] [--repeats 5]
                                      [--only ours monai_int8 monai_f32 plain] [--threads 2] [--json FILE]

Contenders:

    ours        `microtome.predict` of the int8 package
    monai_int8  MONAI: LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd, normalization, SlidingWindowInferer
                (Gaussian, the same overlap), AsDiscreted, Invertd, SaveImaged around the same OpenVINO file
    monai_f32   the same around the parent in eager PyTorch
    plain       `medical.infer.segment` with the int8 session, one stage after another: the reference for voxels

Volumes: `small` has 35×51×35 voxels, `large` 256×256×128; phantoms in int16, as .nii.gz. `real` are the test cases of
the network's own cohort. The network is one of references.py, which trains it if need be; its package is made once and
kept beside it.

Each contender runs in a process of its own, in turn, A B C A B C …, over all cases. Times are those at which its files
were finished, so that all are measured alike: seconds per case go from the first file to the last but two (to the last
where there are fewer than ten). Two cases are under way in `ours` when one is finished, at both ends then. That leaves
out importing and loading (shown as `start`) and the first case, in which the network is compiled (`first`). Peak memory
is that of the process, ru_maxrss. Numbers are medians over the repeats. Measure on a quiet machine.

Idle threads wait as is best for each contender, unless --wait says otherwise: passive (OMP_WAIT_POLICY) where torch's
threads share the processors with OpenVINO's, which would run two to four times slower beside threads that spin; by
OpenMP's default in `monai_f32`, whose network would otherwise be nearly twice as slow.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from file_to_file_contenders import CHILDREN

# Nothing heavy is imported here: a process inherits the peak memory of the one that starts it.

SIZES = {"small": (35, 51, 35), "large": (256, 256, 128)}
CASES = {"small": 40, "large": 3, "real": 40}
CONTENDERS = ("ours", "monai_int8", "monai_f32", "plain")
UNDER_WAY, MANY = 2, 10  # cases; how many there must be before the last ones are left out
MIB = 1024  # ru_maxrss is in KiB on Linux
CLAIMS = {
    "faster than monai_int8": 2.0,
    "faster than monai_f32": 5.0,
    "share of monai_int8's memory": 0.5,
    "same": 0.999,
}


def finished(out: Path, loaded: float) -> dict[str, float]:
    """From the times of the files: seconds per case, and seconds to the first one."""
    times = sorted(file.stat().st_mtime_ns / 1e9 for file in out.glob("*.nii.gz"))
    last = len(times) - 1 - (UNDER_WAY if len(times) >= MANY else 0)
    if last < 1:
        sys.exit("Give two cases at least: the first one is not counted.")
    return {"seconds": (times[last] - times[0]) / last, "first": times[0] - loaded}


def make_package(options: argparse.Namespace) -> None:
    """The reference network as an int8 package, kept beside it."""
    if (options.package / "result.json").is_file():
        return
    import microtome
    from microtome.verbs.options import CompressOptions
    from references import build

    build(options.network, options.data, threads=options.threads)
    chosen = CompressOptions(pipeline=options.reference / "pipeline.json", threads=options.threads)
    network, cohort = options.reference / "network.pt2", options.reference / "manifest.csv"
    microtome.compress(str(network), cohort, options.package, options=chosen)


def make_volumes(options: argparse.Namespace, kind: str, count: int, folder: Path) -> None:
    """Phantoms: an oblong body with blobs of several intensities and noise, which differ from case to case."""
    if kind == "real":
        with (options.reference / "manifest.csv").open(newline="") as stream:
            rows = [row["image"] for row in csv.DictReader(stream) if row["split"] == "test"]
        for file in map(Path, rows[:count]):
            (folder / file.name).symlink_to(file)
        return
    import nibabel
    import numpy as np
    from scipy.ndimage import gaussian_filter

    shape = np.array(SIZES[kind])
    for number in range(count):
        rng = np.random.default_rng(number)
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")).astype(np.float32)
        values = 300.0 * ((grid**2).sum(0) < 0.9)
        for _ in range(int(shape.prod() // 4000)):
            centre = rng.integers(0, shape)
            half = rng.integers(2, 9, 3)
            values[tuple(slice(max(0, c - h), c + h) for c, h in zip(centre, half, strict=True))] += rng.normal(0, 150)
        values = gaussian_filter(values, 1.0) + rng.normal(0, 20, shape)
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), folder / f"{kind}_{number:03d}.nii.gz")


def identical(one: Path, other: Path) -> dict[str, float]:
    """The smallest and the mean share of identical voxels of the label files in two folders."""
    import nibabel
    import numpy as np

    shares = []
    for file in sorted(one.glob("*.nii.gz")):
        arrays = [np.asarray(nibabel.load(folder / file.name).dataobj) for folder in (one, other)]
        shares.append(float(np.mean(arrays[0] == arrays[1])))
    return {"least": min(shares), "mean": statistics.mean(shares)}


def child(options: argparse.Namespace) -> None:
    """Do one thing in this process, and print what came of it as the last line."""
    task, *rest = options.child
    if task == "package":
        make_package(options)
        said: dict[str, Any] = {}
    elif task == "volumes":
        make_volumes(options, rest[0], int(rest[1]), Path(rest[2]))
        said = {}
    elif task == "identical":
        said = identical(Path(rest[0]), Path(rest[1]))
    else:
        said = CHILDREN[task](options, sorted(Path(rest[0]).iterdir()), Path(rest[1]))
        said["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    print(json.dumps(said))


def call(options: argparse.Namespace, *task: str | Path) -> dict[str, Any]:
    """Do one thing in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--child", *map(str, task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    wait = options.wait if options.wait != "best" else "default" if task[0] == "monai_f32" else "passive"
    environment |= {"OMP_WAIT_POLICY": wait} if wait != "default" else {}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if run.returncode:
        sys.exit(f"{' '.join(map(str, task))} failed.")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def contest(options: argparse.Namespace, kind: str, count: int, work: Path) -> dict[str, Any]:
    """All contenders on one kind of volumes, in turn."""
    inputs = work / kind
    inputs.mkdir()
    call(options, "volumes", kind, str(count), inputs)
    said: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for repeat in range(options.repeats):
        for name in options.only:
            out = work / f"{kind}-{name}-{repeat}"
            out.mkdir()
            answer = call(options, name, inputs, out)
            said[name].append({**answer, **finished(out, answer["loaded"])})
            print(f"{kind:6} {name:10} {1e3 * said[name][-1]['seconds']:10.2f} ms per case", file=sys.stderr)
    rows = {name: _median(results) for name, results in said.items()}
    if "plain" in rows:
        for name in set(rows) - {"plain"}:
            rows[name]["identical"] = call(options, "identical", work / f"{kind}-plain-0", work / f"{kind}-{name}-0")
    return rows


def _median(results: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("start", "first", "seconds", "peak_mib")
    row: dict[str, Any] = {name: statistics.median(result[name] for result in results) for name in names}
    row["spread"] = [min(result["seconds"] for result in results), max(result["seconds"] for result in results)]
    stages = results[0]["stages"]
    row["stages_ms"] = {stage: statistics.median(result["stages"][stage] for result in results) for stage in stages}
    return row


def show(kind: str, rows: dict[str, Any]) -> None:
    print(f"\n{kind}: ms per case, peak memory, voxels as in `plain` (least of all cases), s to import and load, first")
    for name, row in rows.items():
        same = f"{100 * row['identical']['least']:8.3f} %" if "identical" in row else " " * 10
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in row["stages_ms"].items())
        print(
            f"{name:11}{1e3 * row['seconds']:10.2f} {row['peak_mib']:7.0f} MiB {same} {row['start']:6.2f} "
            f"{row['first']:6.2f}   {stages}"
        )
    for name, asked in CLAIMS.items():
        found = _claimed(name, rows)
        if found is not None:
            met = found <= asked if "memory" in name else found >= asked
            print(f"{'yes' if met else 'NO ':3} {name}: {found:.4g} (claimed {asked:g})")


def _claimed(name: str, rows: dict[str, Any]) -> float | None:
    mine, peer = rows.get("ours"), rows.get("monai_f32" if name.endswith("f32") else "monai_int8")
    if mine is None or (peer is None and name != "same"):
        return None
    if name == "same":
        return mine["identical"]["least"] if "identical" in mine else None
    return mine["peak_mib"] / peer["peak_mib"] if "memory" in name else peer["seconds"] / mine["seconds"]


def main() -> None:
    repository = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="hippocampus", help="one of references.py")
    parser.add_argument("--package", type=Path, help="its package; made and kept in the cache otherwise")
    parser.add_argument("--volumes", nargs="+", default=["small", "large"], choices=tuple(CASES))
    parser.add_argument("--cases", nargs="+", type=int, help="for each kind of volumes; two at least")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--wait", default="best", choices=("best", "passive", "active", "default"), help="of idle threads"
    )
    default = os.environ.get("MICROTOME_DATA") or repository.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="to train the network, if need be")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microtome" / "references"
    options.reference = cache / options.network  # as references.py, which imports torch
    options.package = options.package or options.reference / "package"
    if options.child:
        child(options)
        return
    call(options, "package")
    counts = options.cases or [CASES[kind] for kind in options.volumes]
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for kind, count in zip(options.volumes, counts, strict=True):
            results[kind] = contest(options, kind, count, Path(work))
            show(kind, results[kind])
    if options.json:
        settings = {"network": options.network, "threads": options.threads, "wait": options.wait, "cases": counts}
        options.json.write_text(json.dumps({**settings, "volumes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
