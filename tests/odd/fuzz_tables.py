"""Mutates CSV manifests and dataset.json, and reads the cohort: nothing but a MicrotomeError may come out.

python tests/odd/fuzz_tables.py --mutations 6000 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from folders import mask, picture, table, volume

from microtome.errors import MicrotomeError
from microtome.inference.jobs import jobs_of
from microtome.medical.class_names import matched
from microtome.medical.cohort import load_cohort

Mutate = Callable[[random.Random, bytes], bytes]

PIECES = (
    *(character.encode() for character in ",;\t|\"'\n\r\0/\\{}[]: Ⅻ²é😀"),
    *(b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"..", b"null", b"true", b"-1", b"1e999", b"NaN", b"0.5"),
    *(b"9" * 20, b"x" * 5000, b"sep=;\n", b"image", b"mask", b"label", b"patient", b"split", b"train", b"test"),
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1.5, 1e300, 10**30, "", "0", "1", "²", "background", "x" * 3000, "../..", "a/\0b",
    [], {}, [0, 1], ["a", "b"], {"0": "background"}, {"a": {"b": []}}, [[[[]]]], "./imagesTr/c0.nii.gz", ["T1", "T2"],
)  # fmt: skip


def of_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change a few bytes: drop, double, swap, insert, overwrite, or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        start = rng.randint(0, len(data))
        end = min(len(data), start + rng.randint(1, 24))
        change = rng.randrange(6)
        if change == 0:
            del data[start:end]
        elif change == 1:
            data[start:start] = data[start:end]
        elif change == 2:
            data[start:start] = rng.choice(PIECES)
        elif change == 3:
            data[start:end] = rng.randbytes(end - start)
        elif change == 4:
            data[start:end] = rng.choice(PIECES)
        elif rng.random() < 0.3:
            del data[start:]
    return bytes(data)


def of_values(rng: random.Random, content: bytes) -> bytes:
    """Change some values, keys or lists of JSON."""
    found = json.loads(content)
    for _ in range(rng.randint(1, 4)):
        found = _changed(rng, found)
    return json.dumps(found).encode()


def _changed(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return rng.choice(VALUES)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [_changed(rng, one) if k == place else one for k, one in enumerate(value)]
    key = rng.choice(list(value))
    if rng.random() < 0.2:
        return {(str(rng.choice(VALUES)) if name == key else name): one for name, one in value.items()}
    if rng.random() < 0.1:
        return {name: one for name, one in value.items() if name != key}
    return {name: _changed(rng, one) if name == key else one for name, one in value.items()}


@dataclass
class Outcome:
    """What came out: how often each error, and what ought not to."""

    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)


def seeds(root: Path) -> list[tuple[Path, Path, bytes, tuple[Mutate, ...]]]:
    """Cohorts that can be read: the folder, its table, the content of that, and how to mutate it."""
    found = []
    pictures = root / "csv"
    for k in range(6):
        picture(pictures / f"{k}.png", k)
        mask(pictures / f"m{k}.png", value=1)
    columns = ["image", "mask", "label", "patient", "split", "site"]
    rows = [[f"{k}.png", f"m{k}.png", "ab"[k % 2], f"p{k}", ("train", "val", "test")[k // 2], "x"] for k in range(6)]
    for delimiter, kept in ((",", 6), (";", 3), ("\t", 2), (",", 1)):
        cells = [[row[i] for i in range(kept)] for row in [columns, *rows]]
        content = table(pictures / "x.csv", cells, delimiter).read_bytes()
        found.append((pictures, pictures / "x.csv", content, (of_bytes,)))
    numbered = "image,label\n" + "".join(f'"{k}.png","{k % 2}"\n' for k in range(6))
    found.append((pictures, pictures / "x.csv", numbered.encode("utf-16"), (of_bytes,)))
    volumes = root / "json"
    for k in range(4):
        for c in range(2):
            volume(volumes / "imagesTr" / f"c{k}_{c:04d}.nii.gz", k)
        volume(volumes / "labelsTr" / f"c{k}.nii.gz", k % 2)
    listed = [{"image": f"./imagesTr/c{k}.nii.gz", "label": f"./labelsTr/c{k}.nii.gz"} for k in range(4)]
    contents: list[dict[str, Any]] = [
        {"labels": {"0": "background", "1": "spot"}, "modality": {"0": "T1", "1": "T2"}, "training": listed},
        {"labels": {"background": 0, "spot": 1}, "channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"},
        {"labels": ["background", "spot"], "training": ["./imagesTr/c0.nii.gz"], "validation": listed[:1], "test": []},
    ]
    for content in contents:
        found.append((volumes, volumes / "dataset.json", json.dumps(content).encode(), (of_bytes, of_values)))
    return found


def run(mutations: int, seed: int = 0) -> Outcome:
    """Read as many mutated tables."""
    rng, outcome = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory() as folder:
        cohorts = seeds(Path(folder))
        for k in range(mutations):
            root, file, content, ways = cohorts[k % len(cohorts)]
            changed = rng.choice(ways)(rng, content)
            file.write_bytes(changed)
            try:
                cohort = load_cohort(file if file.suffix == ".csv" and rng.random() < 0.5 else root)
                for case in cohort.cases[:1]:
                    cohort.mask(case, cohort.image(case))
                matched(cohort, ("background", "spot"), maps=cohort.task == "segmentation")
                outcome.kinds["read"] += 1
            except MicrotomeError as error:
                outcome.kinds[type(error).__name__] += 1
                if not error.problem.strip():
                    outcome.faults.append(f"{type(error).__name__} without a sentence")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome.kinds[f"FAULT {type(error).__name__}"] += 1
                outcome.faults.append(traceback.format_exc(limit=-3))
                outcome.inputs.append(changed)
            with contextlib.suppress(MicrotomeError):
                jobs_of([root], 2)
            file.write_bytes(content)
    return outcome


def main() -> int:
    """Run from the command line; ends with 1 if anything else than a MicrotomeError came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    outcome = run(asked.mutations, asked.seed)
    for kind, count in outcome.kinds.most_common():
        print(f"{count:7,} {kind}")
    for fault, content in list(zip(outcome.faults, outcome.inputs, strict=False))[:5]:
        print(fault, content[:300], sep="\n")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB, {len(outcome.faults)} faults")
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
