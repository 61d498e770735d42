"""Compress a network that takes the noise out of pictures: a manifest with a column for the clean ones.

    python examples/compress_denoiser.py OUT

Runs as it is: it makes smooth pictures with edges, adds noise, and trains a small network on them for some seconds.
Both stand for yours. The same on the command line, for a cohort and weights that exist:

    microtome compress examples/compress_denoiser.py:make cohort/ -o OUT --weights w.pt --pipeline pipeline.json
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import microtome
from microtome.medical.pipeline import Pipeline

SIZE = 48
# The network gives values from 0 to 1; times 255 they are in the unit of the clean pictures.
PIPELINE = Pipeline(
    task="image-to-image",
    classes=("clean",),
    size=(SIZE, SIZE),
    normalize="unit",
    activation="none",
    output_scale=(255.0,),
)


class Residual(nn.Module):
    """Estimates the noise and takes it away (as DnCNN: Zhang et al., IEEE TIP 2017)."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.body(x)


def make() -> nn.Module:
    """The network, without weights."""
    return Residual()


def pictures(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture and a clean one, uint8 (SIZE, SIZE): a smooth field with some discs."""
    y, x = np.mgrid[:SIZE, :SIZE]
    clean = 110 + 40 * np.sin(x / rng.uniform(8, 16) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(8, 16))
    for _ in range(4):
        cy, cx, r = *rng.uniform(8, SIZE - 8, 2), rng.uniform(3, 10)
        clean = np.where((x - cx) ** 2 + (y - cy) ** 2 < r**2, clean + rng.uniform(-60, 60), clean)
    noisy = clean + rng.normal(0, 20, clean.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), np.clip(clean, 0, 255).astype(np.uint8)


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    """Pairs of pictures, one per patient, and the manifest."""
    with (folder / "cohort.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "target", "split"])
        for number, split in enumerate(["train"] * 160 + ["test"] * 60):
            for name, image in zip(("noisy", "clean"), pictures(rng), strict=True):
                Image.fromarray(image).save(folder / f"{name}{number:04d}.png")
            table.writerow([f"noisy{number:04d}.png", f"clean{number:04d}.png", split])


def train(network: nn.Module, folder: Path, epochs: int = 25) -> None:
    """Fit the network to the training pairs."""
    noisy, clean = (
        torch.stack(
            [
                torch.from_numpy(np.array(Image.open(folder / f"{name}{k:04d}.png")) / np.float32(255))[None]
                for k in range(160)
            ]
        )
        for name in ("noisy", "clean")
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(noisy)).split(8):
            optimizer.zero_grad()
            nn.functional.mse_loss(network(noisy[batch]), clean[batch]).backward()
            optimizer.step()
    network.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, np.random.default_rng(0))
        network = make()
        train(network, folder)
        options = microtome.CompressOptions(pipeline=PIPELINE, title="Denoising")
        result = microtome.compress(network, folder, out, options=options)
    for metric in ("psnr", "ssim", "nrmse"):
        before, after = (result[side]["metrics"][metric]["value"] for side in ("parent", "compressed"))
        print(f"{metric:6} {before:.4f} → {after:.4f}")
    print(result["verdict"]["reason"])
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
