"""What microtome understands of a folder of MONAI bundles, such as the model zoo's: one line for each.

    python benchmarks/zoo.py FOLDER [--notes] [--no-networks] [BUNDLE ...]
    python benchmarks/zoo.py FOLDER --compare BUNDLE FILE[,FILE ...]

With --compare, MONAI's own preprocessing of the bundle and the translated pipeline prepare the same file (or one per
channel), and the largest difference is printed.

FOLDER holds one folder per bundle, with `configs/` and, where the bundle has them, `scripts/`; weights are not needed.
Each network is built and captured by `microtome inspect`, in a process of its own. Ends with 1 if a transform or an
inferer is neither translated nor known to be harmless nor noted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from microtome.errors import MicrotomeError
from microtome.models.bundles.declared import Declared, kind_of
from microtome.models.bundles.translate import STAGES, Translation, translate
from microtome.models.sources.bundle import CONFIGS, declared_by

PATIENCE = 600  # seconds for one network


def declared_steps(declared: Declared) -> list[str]:
    """Every transform of the bundle and its inferer, counted apart from what the translation says of them."""
    names = []
    for entry in ("preprocessing", "postprocessing"):
        names += [kind_of(item) for item in declared.transforms(entry) or ()]
    inferer = declared.entry("inferer")
    return names + ([kind_of(inferer)] if isinstance(inferer, dict) else [])


def silent(declared: Declared, made: Translation) -> list[str]:
    """What is declared and does not appear among the steps, or is noted without a note."""
    left = Counter(declared_steps(declared))
    left.subtract(Counter(kind_of({"_target_": f".{step.name}"}) for step in made.steps))
    noted = [step for step in made.steps if step.verdict == "noted"]
    unsaid = [
        step.name
        for step in noted
        if not any(n in step.what or (step.what in n and step.name in n) for n in made.notes)
    ]
    return [name for name, count in left.items() if count > 0] + unsaid


def network_of(folder: Path) -> tuple[str, str]:
    """Return whether the network was captured, and what it is, or why not."""
    command = [sys.executable, "-m", "microtome", "inspect", str(folder), "--target", "openvino", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "no", f"not within {PATIENCE} s"
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return "no", " ".join(lines)[:400]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shape = "×".join(map(str, result["input"]))
    return "yes", f"{result['parameters']:,} parameters, input {shape}"


def compared(folder: Path, files: list[Path]) -> str:
    """Return how far the network's input is from what MONAI's own transforms make of the same files."""
    import numpy as np
    from monai.bundle import ConfigParser

    from microtome.medical.prepare import prepare
    from microtome.medical.read import read_image

    parser = ConfigParser()
    parser.read_config(next(path for name in CONFIGS if (path := folder / "configs" / name).is_file()))
    parser["bundle_root"] = str(folder)
    given = [str(file) for file in files] if len(files) > 1 else str(files[0])
    theirs = parser.get_parsed_content("preprocessing")({"image": given})["image"].numpy()
    made = translate(declared_by(folder))
    if made.pipeline is None:
        return made.problem
    ours = prepare(read_image(files), made.pipeline).array
    if made.pipeline.slices:  # MONAI's slices lie along another axis
        theirs = theirs.transpose(0, *(1 + axis for axis in made.pipeline.transpose or (0, 1, 2)))
    if ours.shape != theirs.shape:
        return f"{ours.shape} is not {theirs.shape}"
    difference = np.abs(ours - theirs)
    return f"{ours.shape}: {difference.max() / np.ptp(theirs):.1e} of the range at most"


def main() -> int:
    """Print the table; return 1 if anything is silent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--compare", nargs=2, metavar=("BUNDLE", "FILES"), help="the network's input beside MONAI's")
    parser.add_argument("--notes", action="store_true", help="every step and every note")
    parser.add_argument("--no-networks", action="store_true", help="do not build any network")
    arguments = parser.parse_args()
    if arguments.compare:
        name, files = arguments.compare
        print(f"{name}: {compared(arguments.folder / name, [Path(file) for file in files.split(',')])}")
        return 0
    print("| bundle | captured | task | translated | harmless | noted | silent |\n|---|---|---|---|---|---|---|")
    bad, details = 0, []
    for folder in sorted(path for path in arguments.folder.iterdir() if (path / "configs").is_dir()):
        if arguments.bundles and folder.name not in arguments.bundles:
            continue
        captured, what = ("–", "") if arguments.no_networks else network_of(folder)
        try:
            declared = declared_by(folder)
        except MicrotomeError as error:
            print(f"| {folder.name} | no: {error.problem} | none | 0 | 0 | 0 | none |", flush=True)
            continue
        made = translate(declared)
        counts = Counter(step.verdict for step in made.steps)
        missing = silent(declared, made)
        bad += len(missing)
        task = made.pipeline.task if made.pipeline else f"none: {made.problem}"
        cells = [counts[verdict] for verdict in ("translated", "harmless", "noted")]
        print(
            f"| {folder.name} | {captured}: {what} | {task} | {' | '.join(map(str, cells))} | "
            f"{', '.join(missing) or 'none'} |",
            flush=True,
        )
        details.append((folder.name, made))
    for name, made in details if arguments.notes else ():
        print(f"\n## {name}\n")
        for stage in STAGES:
            for step in made.steps:
                if step.stage == stage:
                    print(f"- {stage} {step.name}: {step.verdict}: {step.what}")
        print("\n" + "\n".join(f"* {note}" for note in made.notes))
        print(made.pipeline)
    print(f"\n{bad} silent")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
