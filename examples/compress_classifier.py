"""Compress a classifier whose images lie in class folders: train|val|test/CLASS/*.png.

    python examples/compress_classifier.py OUT

Runs as it is: it makes pictures with and without a bright spot, and trains a small network on them for some seconds.
Both stand for yours. The same on the command line, for a cohort and weights that exist:

    microtome compress examples/compress_classifier.py:make cohort/ -o OUT --weights spots.pt --pipeline pipeline.json
"""

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
PIPELINE = Pipeline(task="classification", classes=("clear", "spot"), size=(SIZE, SIZE), normalize="unit")


def make() -> nn.Module:
    """The network, without weights."""
    widths = (1, 16, 32, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2))


def picture(rng: np.random.Generator, spot: bool) -> np.ndarray:
    """Smooth noise, uint8 (SIZE, SIZE), with a faint bright spot or without."""
    y, x = np.mgrid[:SIZE, :SIZE]
    field = 90 + 20 * np.sin(x / rng.uniform(6, 12) + rng.uniform(0, 6)) * np.sin(y / rng.uniform(6, 12))
    if spot:
        row, column = rng.uniform(12, SIZE - 12, 2)
        field += rng.uniform(20, 90) * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 30)
    return np.clip(field + rng.normal(0, 12, field.shape), 0, 255).astype(np.uint8)


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    """Two pictures per person. `personN` in a name is a patient, and patients are never split."""
    person = 0
    for split, persons in (("train", 150), ("val", 30), ("test", 120)):
        for _ in range(persons):
            person += 1
            spot = person % 2 == 0
            place = folder / split / ("spot" if spot else "clear")
            place.mkdir(parents=True, exist_ok=True)
            for number in (1, 2):
                Image.fromarray(picture(rng, spot)).save(place / f"person{person}_{number}.png")


def train(network: nn.Module, folder: Path) -> None:
    """Fit the network to the training folder."""
    files = sorted(folder.glob("train/*/*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file)) / np.float32(255))[None] for file in files])
    labels = torch.tensor([int(file.parent.name == "spot") for file in files])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(20):
        for batch in torch.randperm(len(files)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    network.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, np.random.default_rng(0))
        network = make()
        train(network, folder)
        options = microtome.CompressOptions(pipeline=PIPELINE, metric="auroc", margin=0.01, title="Bright spots")
        result = microtome.compress(network, folder, out, options=options)
    for metric in ("auroc", "sensitivity", "specificity"):
        before, after = (result[side]["metrics"][metric]["value"] for side in ("parent", "compressed"))
        print(f"{metric:12} {before:.4f} → {after:.4f}")
    print(result["verdict"]["reason"])
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
