"""Compress a network for 14 findings of one picture, each there or not: a manifest with a column for each.

    python examples/compress_findings.py OUT

Runs as it is: it makes pictures with up to 14 kinds of marks, one answer in ten unknown, and trains a small network on
them for some seconds. Both stand for yours. The same on the command line, for a cohort and weights that exist:

    microtome compress examples/compress_findings.py:make cohort/ -o OUT --weights w.pt --pipeline pipeline.json
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
FINDINGS = (
    "atelectasis", "cardiomegaly", "consolidation", "oedema", "effusion", "emphysema", "fibrosis", "hernia",
    "infiltration", "mass", "nodule", "pleural thickening", "pneumonia", "pneumothorax",
)  # fmt: skip
PIPELINE = Pipeline(
    task="multi-label", classes=FINDINGS, size=(SIZE, SIZE), normalize="unit", activation="sigmoid"
)  # fmt: skip


def make() -> nn.Module:
    """The network, without weights."""
    widths = (1, 16, 32, 48)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(FINDINGS)))


def picture(rng: np.random.Generator, there: np.ndarray) -> np.ndarray:
    """A noisy picture, uint8 (SIZE, SIZE); finding k is a short grating of its own direction and width somewhere."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = 110 + rng.normal(0, 14, (SIZE, SIZE))
    for k in np.flatnonzero(there):
        cy, cx = rng.uniform(12, SIZE - 12, 2)
        angle, width = np.pi * (k % 7) / 7, 2.2 if k < 7 else 4.0
        wave = np.sin(2 * np.pi * ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / (2 * width))
        image += rng.uniform(25, 70) * wave * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 60)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    """Two pictures per patient, and the manifest. An empty cell is what nobody knows."""
    with (folder / "cohort.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "split", *(f"findings:{name}" for name in FINDINGS)])
        number = 0
        for split, patients in (("train", 500), ("val", 100), ("test", 200)):
            for _, _ in itertools.product(range(patients), range(2)):
                there = rng.random(len(FINDINGS)) < 0.12
                Image.fromarray(picture(rng, there)).save(folder / f"{number:04d}.png")
                answers = [int(one) if rng.random() > 0.1 else "" for one in there]
                table.writerow([f"{number:04d}.png", number // 2, split, *answers])
                number += 1


def train(network: nn.Module, folder: Path, epochs: int = 20) -> None:
    """Fit the network to the answers of the training patients that are known."""
    with (folder / "cohort.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    pictures = [np.array(Image.open(folder / row["image"])) / np.float32(255) for row in rows]
    images = torch.from_numpy(np.stack(pictures))[:, None]
    answers = torch.tensor([[float(row[f"findings:{name}"] or "nan") for name in FINDINGS] for row in rows])
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            known = answers[batch].isfinite()
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(
                network(images[batch])[known], answers[batch][known]
            ).backward()
            optimizer.step()
    network.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, np.random.default_rng(0))
        network = make()
        train(network, folder)
        options = microtome.CompressOptions(pipeline=PIPELINE, title="14 findings")
        result = microtome.compress(network, folder, out, options=options)
    for metric in ("auroc", *(f"auroc/{finding}" for finding in FINDINGS)):
        before, after = (result[side]["metrics"][metric]["value"] for side in ("parent", "compressed"))
        print(f"{metric:26} {before:.4f} → {after:.4f}")
    print(result["verdict"]["reason"])
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
