"""Writes small cohorts."""

import json
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image


def picture(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def volume(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((3, 4, 5), value, np.int16), np.eye(4)), path)
    return path


def class_folders(root: Path, files: dict[str, list[str]]) -> Path:
    """`{"train/CAT": ["a", "b"]}` → PNG files."""
    for folder, stems in files.items():
        for stem in stems:
            picture(root / folder / f"{stem}.png")
    return root


def decathlon(root: Path, cases: int = 10, labels: dict | None = None) -> Path:
    for k in range(cases):
        volume(root / "imagesTr" / f"organ_{k:03d}.nii.gz", k)
        volume(root / "labelsTr" / f"organ_{k:03d}.nii.gz", k % 3)
    names = {"0": "background", "1": "front", "2": "back"} if labels is None else labels
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    return root


def manifest(root: Path, lines: list[str], files: int = 6) -> Path:
    """A CSV beside the pictures 0.png, 1.png, … and the masks m0.png, m1.png, …"""
    for k in range(files):
        picture(root / f"{k}.png", k)
        picture(root / f"m{k}.png", 255 * (k % 2))
    (root / "cohort.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "cohort.csv"


def medmnist(path: Path, sizes: dict[str, int] | None = None, **arrays) -> Path:
    sets = {}
    for split, count in ({"train": 8, "val": 4, "test": 6} if sizes is None else sizes).items():
        sets[f"{split}_images"] = np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4)
        sets[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    np.savez_compressed(path, **(sets | arrays))
    return path
