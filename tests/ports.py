"""Tiny networks with several inputs and outputs that do their task without training, and cohorts for them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor, nn

from microtome.medical.pipeline import Pipeline
from tiny import SIZE, Spots, picture

AGE_SEX = {"columns": ["age", "sex"], "codes": {"sex": {"F": 0, "M": 1}}, "mean": [60, 0], "std": [10, 1]}
CLINICAL = Pipeline(
    "classification",
    ("well", "ill"),
    size=(SIZE, SIZE),
    normalize="unit",
    inputs={"age_sex": AGE_SEX},  # type: ignore[dict-item]
)
GROWTH = Pipeline(
    "segmentation",
    ("background", "new"),
    patch=(16, 16),
    normalize="unit",
    mirror=(0, 1),
    inputs={"prior": {"images": "prior"}},  # type: ignore[dict-item]
)


class Clinical(nn.Module):
    """Brightness and age decide: logits (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(2, 4), nn.Linear(8, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 9)
            self.conv.bias.zero_()
            self.mix.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
            self.mix.bias.zero_()
            self.head.weight.zero_()
            self.head.weight[1] = torch.tensor([10.0] * 4 + [2.0, -2.0, 1.0, -1.0])
            self.head.bias.copy_(torch.tensor([0.0, -20.0]))

    def forward(self, image: Tensor, age_sex: Tensor) -> Tensor:
        seen = torch.relu(self.conv(image)).mean((2, 3))
        return self.head(torch.cat([seen, torch.relu(self.mix(age_sex))], 1))


class Growth(nn.Module):
    """Finds what is bright now and was not before: logits (N, 2, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.spots = Spots()
        self.before = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        with torch.no_grad():
            self.before.weight.fill_(-1 / 9)

    def forward(self, prior: Tensor, image: Tensor) -> Tensor:
        now = torch.relu(self.spots.norm(self.spots.smooth(image)) + self.before(prior) + 0.25)
        return self.spots.head(torch.relu(self.spots.mix(now)))


class Headed(nn.Module):
    """A network for spots whose output `form` makes of scores, scores at half the size, and two numbers."""

    def __init__(self, form: Callable[[Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.spots, self.form = Spots(), form
        self.low, self.count = nn.Conv2d(8, 2, 1), nn.Linear(8, 2)
        with torch.no_grad():
            self.count.weight.copy_(torch.tensor([[0.0] * 8, [25.0] * 8]))
            self.count.bias.copy_(torch.tensor([0.0, -2.5]))

    def forward(self, x: Tensor) -> object:
        spots = self.spots
        seen = torch.relu(spots.mix(torch.relu(spots.norm(spots.smooth(x)))))
        found = torch.relu(seen - 0.45)
        return self.form(spots.head(seen), self.low(nn.functional.avg_pool2d(seen, 2)), self.count(found.mean((2, 3))))


def clinical_cohort(folder: Path, *, cases: int = 60) -> Path:
    """A manifest with labels, ages and sexes; the label follows from brightness and age, with noise."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for k in range(cases):
        level, age, sex = rng.uniform(80, 170), int(rng.uniform(40, 80)), "FM"[k % 2]
        image = np.clip(level + rng.normal(0, 10, (SIZE, SIZE)), 0, 255).astype(np.uint8)
        Picture.fromarray(image).save(folder / "images" / f"p{k}.png")
        score = 40 * level / 255 + 2 * (age - 60) / 10 + (k % 2) - 20 + rng.normal(0, 2)
        rows.append([f"images/p{k}.png", "ill" if score > 0 else "well", age, sex])
    _table(folder / "manifest.csv", ["image", "label", "age", "sex"], rows)
    return folder / "manifest.csv"


def growth_cohort(folder: Path, *, cases: int = 24) -> Path:
    """A manifest of pairs of pictures, and masks of the spots that are new."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks", "before"):
        (folder / sub).mkdir(parents=True)
    rows = []
    for k in range(cases):
        (image, mask), (_, old) = picture(rng), picture(rng, empty=k % 3 == 0)
        image = np.clip(image.astype(int) + 140 * (old > mask), 0, 255).astype(np.uint8)
        prior = np.clip(60 + 140 * old + rng.normal(0, 10, old.shape), 0, 255).astype(np.uint8)
        for sub, array in (("images", image), ("masks", 255 * (mask > old).astype(np.uint8)), ("before", prior)):
            Picture.fromarray(array).save(folder / sub / f"p{k}.png")
        rows.append([f"images/p{k}.png", f"masks/p{k}.png", f"before/p{k}.png"])
    _table(folder / "manifest.csv", ["image", "mask", "prior"], rows)
    return folder / "manifest.csv"


def both_cohort(folder: Path, *, cases: int = 40) -> Path:
    """A manifest of pictures with masks and labels: whether there is a spot."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    rows = []
    for k in range(cases):
        image, mask = picture(rng, empty=k % 2 == 0)
        Picture.fromarray(image).save(folder / "images" / f"p{k}.png")
        Picture.fromarray(mask * 255).save(folder / "masks" / f"p{k}.png")
        rows.append([f"images/p{k}.png", f"masks/p{k}.png", "spot" if mask.any() else "none"])
    _table(folder / "manifest.csv", ["image", "mask", "label"], rows)
    return folder / "manifest.csv"


def _table(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
