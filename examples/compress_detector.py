"""Compress a detector: a small RetinaNet-like network, its heads described by the pipeline, boxes in COCO's JSON.

    python examples/compress_detector.py OUT

Runs as it is: it makes noisy pictures with bright lesions, and trains the network on them for some seconds. Both
stand for yours. The same on the command line, for a cohort and weights that exist:

    microtome compress examples/compress_detector.py:make cohort/ -o OUT --weights w.pt --pipeline pipeline.json
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import microtome
from microtome.medical.detector import Detector
from microtome.medical.pipeline import Pipeline

SIZE, STRIDE = 64, 8
ANCHORS = (8.0, 12.0, 18.0)
PIPELINE = Pipeline(
    task="detection",
    classes=("lesion",),
    size=(SIZE, SIZE),
    normalize="unit",
    activation="sigmoid",
    output="scores",
    keep=("boxes",),
    detector=Detector(
        head="anchors",
        scores=("scores",),
        boxes=("boxes",),
        strides=(STRIDE,),
        anchors=(tuple((side, side) for side in ANCHORS),),
        shift=0.5,
        least=0.02,
        overlap=0.3,
        limit=20,
    ),
)


class Retina(nn.Module):
    """Two heads on one grid: a score and four offsets for each anchor, as they come out of the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            ),
            nn.Conv2d(48, 48, 3, 1, 1),
            nn.ReLU(),
        )
        self.scores = nn.Conv2d(48, len(ANCHORS), 3, 1, 1)
        self.boxes = nn.Conv2d(48, 4 * len(ANCHORS), 3, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(x)
        return {"scores": self.scores(x), "boxes": self.boxes(x)}


def make() -> nn.Module:
    """The network, without weights."""
    return Retina()


def picture(rng: np.random.Generator) -> tuple[np.ndarray, list[list[float]]]:
    """A noisy picture, uint8 (SIZE, SIZE), with 0 to 3 bright lesions, and their boxes [x, y, width, height]."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    image, boxes = 80 + 15 * np.sin(x / 9) + rng.normal(0, 12, (SIZE, SIZE)), []
    for _ in range(rng.integers(0, 4)):
        rx, ry = rng.uniform(4, 9, 2)
        cx, cy = rng.uniform(10, SIZE - 10, 2)
        image += rng.uniform(40, 90) * (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)
        boxes.append([cx - rx, cy - ry, 2 * rx, 2 * ry])
    return np.clip(image, 0, 255).astype(np.uint8), boxes


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    """Pictures, and a COCO file for each part."""
    for split, count in (("train", 240), ("val", 60), ("test", 120)):
        data: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "lesion"}]}
        for k in range(count):
            image, boxes = picture(rng)
            name = f"{split}{k:04d}.png"
            Image.fromarray(image).save(folder / name)
            data["images"].append({"id": k, "file_name": name, "width": SIZE, "height": SIZE})
            for box in boxes:
                entry = {"id": len(data["annotations"]), "image_id": k, "category_id": 1, "bbox": box}
                data["annotations"].append(entry)
        (folder / f"{split}.json").write_text(json.dumps(data))


def targets(boxes: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """What the heads ought to say: (A, H, W) scores, -1 where it does not matter, and (A, 4, H, W) offsets."""
    n = SIZE // STRIDE
    scores, offsets = np.zeros((len(ANCHORS), n, n), np.float32), np.zeros((len(ANCHORS), 4, n, n), np.float32)
    centres = (np.arange(n) + 0.5) * STRIDE
    cy, cx = np.meshgrid(centres, centres, indexing="ij")
    for a, side in enumerate(ANCHORS):
        best = np.zeros((n, n))
        for x, y, w, h in boxes:
            wide = np.minimum(cx + side / 2, x + w) - np.maximum(cx - side / 2, x)
            high = np.minimum(cy + side / 2, y + h) - np.maximum(cy - side / 2, y)
            shared = np.maximum(wide, 0) * np.maximum(high, 0)
            overlap = shared / (side**2 + w * h - shared)
            new = overlap > best
            best = np.maximum(best, overlap)
            values = ((x + w / 2 - cx) / side, (y + h / 2 - cy) / side, np.log(w / side), np.log(h / side))
            for k, value in enumerate(values):
                offsets[a, k] = np.where(new, value, offsets[a, k])
        scores[a] = np.where(best >= 0.4, 1, np.where(best >= 0.25, -1, 0))
    return scores, offsets


def train(network: nn.Module, folder: Path, epochs: int = 40) -> None:
    """Fit the network to the training part: cross entropy of scores, distance of offsets where there is a lesion."""
    data = json.loads((folder / "train.json").read_text())
    boxes: dict[int, list] = {entry["id"]: [] for entry in data["images"]}
    for entry in data["annotations"]:
        boxes[entry["image_id"]].append(entry["bbox"])
    pictures = [np.array(Image.open(folder / entry["file_name"])) / np.float32(255) for entry in data["images"]]
    images = torch.from_numpy(np.stack(pictures))[:, None]
    wanted = [targets(found) for found in boxes.values()]
    scores, offsets = (torch.from_numpy(np.stack(part)) for part in zip(*wanted, strict=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            found = network(images[batch])
            goal, place = scores[batch], offsets[batch]
            counted, lesion = goal >= 0, goal == 1
            loss = nn.functional.binary_cross_entropy_with_logits(
                found["scores"][counted], goal[counted], pos_weight=torch.tensor(3.0)
            )
            near = found["boxes"].reshape(place.shape).movedim(2, -1)[lesion]
            loss = loss + nn.functional.smooth_l1_loss(near, place.movedim(2, -1)[lesion])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


def main(out: Path) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, np.random.default_rng(0))
        network = make()
        train(network, folder)
        options = microtome.CompressOptions(pipeline=PIPELINE, title="Bright lesions")
        result = microtome.compress(network, folder, out, options=options)
    for metric in ("froc", "map", "ap50", "hits", "false"):
        before, after = (result[side]["metrics"][metric]["value"] for side in ("parent", "compressed"))
        print(f"{metric:6} {before:.4f} → {after:.4f}")
    print(result["verdict"]["reason"])
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
