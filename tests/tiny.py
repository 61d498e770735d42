"""Tiny cohorts and networks that do their task without training, so that the verbs can be run whole in seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image as Picture
from torch import nn

from microtome.medical.pipeline import Pipeline

SIZE = 32
PICTURES = Pipeline("segmentation", ("background", "spot"), 1, 2, size=(32, 32), normalize="unit", activation="softmax")
CLASSES = Pipeline("classification", ("dark", "light"), 1, 2, size=(32, 32), normalize="unit", activation="softmax")
VOLUMES = Pipeline(
    "segmentation",
    ("background", "spot"),
    1,
    3,
    orientation="RAS",
    normalize="minmax",
    patch=(16, 16, 16),
    activation="softmax",
)


class Spots(nn.Module):
    """Finds bright spots: a 3×3 mean, some mixing, and a threshold. Logits (N, 2, H, W)."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.smooth = conv(1, 8, 3, padding=1, bias=False)
        self.norm = norm(8)
        self.mix = conv(8, 8, 3, padding=1)
        self.head = conv(8, 2, 1)
        with torch.no_grad():
            self.smooth.weight.fill_(1 / 3**dims)
            self.mix.weight.zero_()
            centre = (slice(None), slice(None), *([1] * dims))
            self.mix.weight[centre] = torch.eye(8)
            self.mix.bias.zero_()
            self.head.weight.zero_()
            self.head.weight[1] = 1.0
            self.head.bias.copy_(torch.tensor([0.0, -8 * 0.45]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(torch.relu(self.norm(self.smooth(x))))))


class Brightness(nn.Module):
    """Classifies by mean brightness. Logits (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 9)
            self.conv.bias.zero_()
            self.head.weight.copy_(torch.tensor([[0.0] * 4, [10.0] * 4]))
            self.head.bias.copy_(torch.tensor([0.0, -20.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def spots() -> nn.Module:
    """Factory, for `tiny.py:spots`."""
    return Spots()


def picture(rng: np.random.Generator, *, empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture with a bright disk, and the disk's mask; uint8."""
    y, x = np.mgrid[:SIZE, :SIZE]
    cy, cx = rng.uniform(10, SIZE - 10, 2)
    mask = ((y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(5, 8) ** 2) & (not empty)
    image = np.clip(60 + 140 * mask + rng.normal(0, 10, mask.shape), 0, 255).astype(np.uint8)
    return image, mask.astype(np.uint8)


def segmentation_cohort(folder: Path, *, cases: int = 40, empty: int = 2) -> Path:
    """Image + mask folders; two pictures per patient, `empty` of them without a spot."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for i in range(cases):
        image, mask = picture(rng, empty=i < empty)
        Picture.fromarray(image).save(folder / "images" / f"person{i // 2}_{i % 2}.png")
        Picture.fromarray(mask * 255).save(folder / "masks" / f"person{i // 2}_{i % 2}.png")
    return folder


def manifest_cohort(folder: Path, *, cases: int = 40) -> Path:
    """A CSV manifest with an explicit split and a subgroup column."""
    segmentation_cohort(folder, cases=cases)
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "patient", "split", "site"])
        for i in range(cases):
            name = f"person{i // 2}_{i % 2}.png"
            split = ("train", "val", "test", "test")[i // 2 % 4]
            table.writerow([f"images/{name}", f"masks/{name}", i // 2, split, "AB"[i // 2 % 2]])
    return path


def class_cohort(folder: Path, *, per_class: int = 30, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    """Class folders."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            image = np.clip(rng.normal(100 + 60 * k, 40) + rng.normal(0, 10, (SIZE, SIZE)), 0, 255).astype(np.uint8)
            Picture.fromarray(image).save(folder / name / f"IM-{k}{i:03d}-0001.png")
    return folder


def volume_cohort(folder: Path, *, cases: int = 24) -> Path:
    """Medical Segmentation Decathlon layout with small NIfTI volumes of uneven spacing."""
    rng = np.random.default_rng(0)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    names = []
    for i in range(cases):
        shape = (20, 18, 14)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        centre = rng.uniform(6, 9, 3)[:, None, None, None]
        mask = (((grid - centre) ** 2).sum(0) < rng.uniform(3, 5) ** 2).astype(np.uint8)
        image = (60 + 140 * mask + rng.normal(0, 8, shape)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / "imagesTr" / f"v_{i:03d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "labelsTr" / f"v_{i:03d}.nii.gz")
        names.append({"image": f"./imagesTr/v_{i:03d}.nii.gz", "label": f"./labelsTr/v_{i:03d}.nii.gz"})
    import json

    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "spot"}, "modality": {"0": "MRI"}, "training": names})
    )
    return folder
