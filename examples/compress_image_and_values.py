"""Compress a network that takes an image and clinical values: age, and sex.

    python examples/compress_image_and_values.py OUT

Runs as it is: it makes pictures with a table of ages and sexes, and trains a small network on them for some seconds.
Both stand for yours. The pipeline says where the network's second input comes from; on the command line it is the same,
in pipeline.json:

    microtome compress examples/compress_image_and_values.py:make cohort/ -o OUT --weights w.pt --pipeline pipeline.json
    microtome predict OUT/ scans/ -o predictions --input clinical=table.csv
"""

import csv
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import microtome
from microtome.inference.jobs import Given
from microtome.medical.declared_inputs import Input
from microtome.medical.pipeline import Pipeline

SIZE = 48
CLINICAL = Input(columns=("age", "sex"), codes={"sex": {"F": 0, "M": 1}}, mean=(60, 0.5), std=(12, 0.5))
PIPELINE = Pipeline(
    task="classification",
    classes=("well", "ill"),
    size=(SIZE, SIZE),
    normalize="unit",
    inputs={"clinical": CLINICAL},
)


class Both(nn.Module):
    """Convolutions for the image, a layer for the values, and one that sees both."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise((1, 16, 32))
        ]
        self.image, self.values = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten()), nn.Linear(2, 16)
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, image: Tensor, clinical: Tensor) -> Tensor:
        """Return scores of the classes, (N, 2)."""
        return self.head(torch.cat([self.image(image), torch.relu(self.values(clinical))], 1))


def make() -> nn.Module:
    """The network, without weights."""
    return Both()


def case(rng: np.random.Generator) -> tuple[np.ndarray, float, str, str]:
    """A picture uint8 (SIZE, SIZE), an age, a sex, and the class: older patients with a brighter spot are ill."""
    y, x = np.mgrid[:SIZE, :SIZE]
    spot, age, sex = rng.uniform(0, 100), round(rng.uniform(35, 85)), "FM"[rng.integers(2)]
    row, column = rng.uniform(10, SIZE - 10, 2)
    field = 90 + spot * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 20) + rng.normal(0, 8, (SIZE, SIZE))
    ill = (spot - 50) / 30 + (age - 60) / 12 + 0.5 * (sex == "M") + rng.normal(0, 0.4) > 0
    return np.clip(field, 0, 255).astype(np.uint8), age, sex, "ill" if ill else "well"


def write_cohort(folder: Path, rng: np.random.Generator) -> Path:
    """Pictures, and the table that names them: its columns age and sex are what the pipeline asks for."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(400):
        picture, age, sex, label = case(rng)
        split = ("train", "train", "val", "test", "test")[number % 5]
        Image.fromarray(picture).save(folder / "images" / f"person{number}.png")
        rows.append([f"images/person{number}.png", label, age, sex, split])
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "age", "sex", "split"], *rows])
    return folder / "cohort.csv"


def train(rng: np.random.Generator) -> nn.Module:
    """Fit the network to pictures like these, prepared as the pipeline says."""
    cases = [case(rng) for _ in range(1000)]
    images = torch.tensor(np.stack([picture for picture, *_ in cases]), dtype=torch.float32)[:, None] / 255
    values = torch.tensor([[(age - 60) / 12, 2.0 * (sex == "M") - 1] for _, age, sex, _ in cases])
    labels = torch.tensor([PIPELINE.classes.index(label) for *_, label in cases])
    network = make().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(6):
        for batch in torch.randperm(len(cases)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch], values[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        table = write_cohort(Path(scratch) / "cohort", rng)
        result = microtome.compress(train(rng), table, out, options=microtome.CompressOptions(pipeline=PIPELINE))
        # The same table serves again: of a line its image, age and sex are looked at.
        given = Given([table.parent / "images"], {"clinical": table})
        predicted = microtome.predict(out, given, Path(scratch) / "predictions")
    before, after = (result[side]["metrics"]["auroc"]["value"] for side in ("parent", "compressed"))
    print(f"AUROC {before:.4f} → {after:.4f}: {result['verdict']['reason']}")
    print(f"{predicted['cases']} images predicted; report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
