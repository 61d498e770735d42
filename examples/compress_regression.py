"""Compress a network that estimates an age from a picture: a manifest with a column for it.

    python examples/compress_regression.py OUT

Runs as it is: it makes pictures of rings whose width and texture change with age, and trains a small network on them
for some seconds. Both stand for yours. The same on the command line, for a cohort and weights that exist:

    microtome compress examples/compress_regression.py:make cohort/ -o OUT --weights w.pt --pipeline pipeline.json
"""

import csv
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import microtome
from microtome.medical.pipeline import Pipeline

SIZE = 64
MEAN, SPREAD = 50.0, 20.0  # of the ages: the network gives standard deviations from their mean
PIPELINE = Pipeline(
    task="regression",
    classes=("age",),
    size=(SIZE, SIZE),
    normalize="unit",
    activation="none",
    output_scale=(SPREAD,),
    output_offset=(MEAN,),
)


def make() -> nn.Module:
    """The network, without weights."""
    widths = (1, 16, 32, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1))


def picture(rng: np.random.Generator, age: float) -> np.ndarray:
    """A noisy ring, uint8 (SIZE, SIZE), thinner and rougher with age."""
    y, x = np.mgrid[:SIZE, :SIZE]
    cy, cx = rng.uniform(28, 36, 2)
    radius = np.hypot(x - cx, y - cy)
    thickness = 9 - 0.06 * age + rng.normal(0, 0.3)
    ring = np.exp(-(((radius - 18) / thickness) ** 2))
    image = 70 + rng.uniform(80, 110) * ring + (4 + 0.12 * age) * rng.normal(size=(SIZE, SIZE))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    """One picture per patient, and the manifest. The column is called after what the network gives."""
    with (folder / "cohort.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "age", "sex", "split"])
        for number, split in enumerate(["train"] * 500 + ["test"] * 200):
            age = float(np.clip(rng.normal(MEAN, SPREAD), 1, 99))
            Image.fromarray(picture(rng, age)).save(folder / f"{number:04d}.png")
            table.writerow([f"{number:04d}.png", f"{age:.1f}", rng.choice(["f", "m"]), split])


def train(network: nn.Module, folder: Path, epochs: int = 30) -> None:
    """Fit the network to the ages of the training patients."""
    with (folder / "cohort.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    pictures = [np.array(Image.open(folder / row["image"])) / np.float32(255) for row in rows]
    images = torch.from_numpy(np.stack(pictures))[:, None]
    ages = torch.tensor([[(float(row["age"]) - MEAN) / SPREAD] for row in rows])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            nn.functional.smooth_l1_loss(network(images[batch]), ages[batch]).backward()
            optimizer.step()
        schedule.step()
    network.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, np.random.default_rng(0))
        network = make()
        train(network, folder)
        # the verdict: no more than 0.5 years of mean absolute error are lost
        options = microtome.CompressOptions(pipeline=PIPELINE, metric="mae", margin=0.5, title="Age")
        result = microtome.compress(network, folder, out, options=options)
    for metric in ("mae", "rmse", "nmae", "concordance"):
        before, after = (result[side]["metrics"][metric]["value"] for side in ("parent", "compressed"))
        print(f"{metric:12} {before:.4f} → {after:.4f}")
    print(result["verdict"]["reason"])
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
