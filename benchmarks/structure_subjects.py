"""What `structure.py` compresses: the reference networks, and nnU-Net's own of the hippocampus, with their cases."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from references import cache

HIPPOCAMPUS: Mapping[str, Any] = {"batch": 4, "flips": (0,)}
TRAINED: Mapping[str, Mapping[str, Any]] = {
    "hippocampus": HIPPOCAMPUS,
    "hippocampus_dynunet": HIPPOCAMPUS,
    "hippocampus_segresnet": HIPPOCAMPUS,
    "skin": {"batch": 8, "flips": (0, 1)},
    "chest": {"batch": 16, "flips": (1,)},
    "nnunet": {"batch": 4},  # mirrored as its pipeline mirrors
}
RESULTS = "nnunet/results/Dataset004_Hippocampus/nnUNetTrainer_5epochs__nnUNetPlans__3d_fullres/fold_0"
EVERY_FIFTH = 5


@dataclass(frozen=True)
class Subject:
    """A parent with its cases.

    Attributes:
        model: what `compress` loads.
        cohort: its cases, in roles.
        options: how it is trained on: images per step, and axes that may be mirrored.
    """

    model: Path
    cohort: Path
    options: Mapping[str, Any]


def subject(name: str, data: Path, folder: Path) -> Subject:
    """Return a network by its name.

    Args:
        name: of a reference, or `nnunet`.
        data: folder of the data sets.
        folder: for a manifest where there is none.
    """
    if name == "nnunet":
        model, manifest = data / RESULTS, folder / "nnunet.csv"
        if model.is_dir():
            _hippocampi(data, manifest)
    else:
        model = cache() / name / "network.pt2"
        manifest = model.with_name("manifest.csv")
    if not model.exists():
        raise SystemExit(f"There is no {model}: give --data, or run benchmarks/references.py first.")
    return Subject(model, manifest, TRAINED[name])


def _hippocampi(data: Path, manifest: Path) -> None:
    """Write the roles of volumes for nnU-Net's network: set A of its folder is evaluated, the others train and tune."""
    kept = set((data / "nnunet" / "inputs" / "A.txt").read_text().split())
    with manifest.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "mask", "patient", "split"])
        others = 0
        for image in sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz")):
            name = image.name.removesuffix(".nii.gz")
            role = "test" if name in kept else "val" if others % EVERY_FIFTH == 0 else "train"
            others += name not in kept
            writer.writerow([image, data / "hippocampus" / "labelsTr" / image.name, name, role])
