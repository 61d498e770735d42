"""One training loop for all reference networks, and the scores of what comes out.

Stages of fixed length, one cycle of the learning rate, float32 weights, bfloat16 arithmetic unless a recipe says
otherwise. Images lie in memory as the pipeline prepares them. Every batch is drawn with a random affine map, which also
sets the size that a stage trains at, so that early stages can be small and fast.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.clinical.classification import auprc, auroc
from microtome.clinical.overlap import dice
from microtome.evidence.comparison import streamed
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.read import read_image, read_mask
from microtome.tasks import task
from microtome.tasks.base import predict_one
from microtome.types import Image

Row = Mapping[str, str]  # a line of the manifest
Loss = Callable[[Tensor, Tensor], Tensor]
LOG_SECONDS = 20.0
WARM_UP = 0.15
MAX_NORM = 12.0  # of the gradient, as nnU-Net clips it


@dataclass(frozen=True)
class Stage:
    """A stretch of training: `steps` batches of `batch` images of `size`, which show `extent` of the stored image."""

    steps: int
    batch: int
    size: tuple[int, ...]
    extent: tuple[float, ...]

    @property
    def work(self) -> int:
        """Pixels of a batch."""
        return self.batch * math.prod(self.size)


@dataclass(frozen=True)
class Augmentation:
    """How far images are moved and changed at random. Lengths are relative to half of the image."""

    rotation: float = 0.0  # degrees, about each axis
    scale: float = 0.0
    shift: float = 0.0
    flips: tuple[int, ...] = ()  # spatial axes
    contrast: float = 0.0
    brightness: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Examples:
    """Prepared training images and their targets, in memory.

    Attributes:
        images: (N, C, *S), float16 or float32.
        targets: label maps (N, *S) uint8, or classes (N,) int64.
        weights: how often each example is drawn, relative to the others.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `limit` is in seconds; without `bfloat16`, arithmetic is in float32."""

    stages: tuple[Stage, ...]
    loss: Loss
    augmentation: Augmentation = field(default_factory=Augmentation)
    rate: float = 2e-3
    decay: float = 1e-2
    seed: int = 0
    limit: float = 540.0
    bfloat16: bool = True


def train(module: nn.Module, examples: Examples, recipe: Recipe, *, device: str = "cpu") -> nn.Module:
    """Train a module in place with AdamW and one cycle of the learning rate; return it in evaluation mode.

    Progress is counted in pixels seen, or in time where the machine is too slow for `recipe.limit`: the stages and the
    learning rate then run through faster, and the result depends on the machine.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    layout = torch.channels_last_3d if examples.images.ndim == 5 else torch.channels_last
    module.to(device=device, memory_format=layout).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    ends = list(itertools.accumulate(stage.steps * stage.work for stage in recipe.stages))
    started = said = time.monotonic()
    steps, work, progress, mean = 0, 0, 0.0, math.nan
    order = _endless(examples.weights, generator)
    while progress < 1:
        stage = next(s for s, end in zip(recipe.stages, ends, strict=True) if progress < end / ends[-1])
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * one_cycle(progress)
        chosen = torch.tensor(list(itertools.islice(order, stage.batch)))
        x, y = draw(examples, chosen, stage, recipe.augmentation, generator)
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bfloat16):
            output = module(x.to(device, memory_format=layout))
        loss = recipe.loss(output.float(), y.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        steps, work = steps + 1, work + stage.work
        mean = float(loss.detach()) if steps == 1 else 0.95 * mean + 0.05 * float(loss.detach())
        now = time.monotonic()
        progress = max(work / ends[-1], (now - started) / recipe.limit)
        if now - said > LOG_SECONDS or progress >= 1:
            said = now
            left = (now - started) / progress * (1 - progress)
            print(f"{progress:.0%}, {steps} steps, loss {mean:.4f}, about {max(0.0, left):.0f} s left", flush=True)
    if work < ends[-1]:
        print(f"The machine was slow: training was shortened to {work / ends[-1]:.0%}.")
    return module.to("cpu", memory_format=torch.contiguous_format).eval()


def one_cycle(progress: float) -> float:
    """Learning rate over its maximum (Smith and Topin 2019): up for the first 15 %, then down, along cosines."""
    if progress < WARM_UP:
        return 0.52 - 0.48 * math.cos(math.pi * progress / WARM_UP)
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))


def draw(
    examples: Examples, chosen: Tensor, stage: Stage, augmentation: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One augmented batch: images (N, C, *stage.size) and label maps (N, *stage.size) int64 or classes (N,)."""
    images, targets = examples.images[chosen].float(), examples.targets[chosen]
    theta = random_affine(len(chosen), stage.extent, augmentation, generator)
    grid = F.affine_grid(theta, [len(chosen), 1, *stage.size], align_corners=False)
    x = F.grid_sample(images, grid, align_corners=False)
    if targets.ndim > 1:
        labels = F.grid_sample(targets[:, None].float(), grid, mode="nearest", align_corners=False)
        targets = labels[:, 0].long()
    return _intensities(x, augmentation, generator), targets


def random_affine(
    count: int, extent: Sequence[float], augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Affine maps (count, D, D + 1) for `affine_grid`, whose coordinates run in the reverse order of the axes."""
    dims = len(extent)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand((count, *shape), generator=generator) - 1

    matrix = torch.eye(dims).expand(count, dims, dims).clone()
    for a, b in itertools.combinations(range(dims), 2):
        angle = math.radians(augmentation.rotation) * uniform()
        turn = torch.eye(dims).expand(count, dims, dims).clone()
        turn[:, a, a] = turn[:, b, b] = torch.cos(angle)
        turn[:, a, b], turn[:, b, a] = -torch.sin(angle), torch.sin(angle)
        matrix = matrix @ turn
    factors = torch.tensor(list(extent))[None] * (1 + augmentation.scale * uniform(1))
    for axis in augmentation.flips:
        factors[:, axis] *= torch.where(uniform() > 0, 1.0, -1.0)
    matrix = matrix * factors[:, None, :]
    shift = augmentation.shift * uniform(dims)
    return torch.cat([matrix.flip(1, 2), shift.flip(1)[:, :, None]], dim=2)


def _intensities(x: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    shape = (len(x), x.shape[1], *[1] * (x.ndim - 2))

    def uniform() -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    x = x * (1 + augmentation.contrast * uniform()) + augmentation.brightness * uniform()
    if augmentation.noise:
        x = x + augmentation.noise * torch.rand(len(x), generator=generator).view(-1, *shape[1:-1], 1)[:, :1] * (
            torch.randn(x.shape, generator=generator)
        )
    return x


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy plus one minus the mean Dice of the foreground classes over the batch (Isensee et al. 2021)."""
    classes = logits.shape[1]
    probability = torch.softmax(logits, dim=1)
    truth = F.one_hot(target, classes).movedim(-1, 1)
    axes = (0, *range(2, logits.ndim))
    overlap = (probability * truth).sum(axes)[1:]
    total = (probability + truth).sum(axes)[1:]
    dice = (2 * overlap + 1) / (total + 1)
    return F.cross_entropy(logits, target) + 1 - dice.mean()


def smoothed_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with 5 % label smoothing."""
    return F.cross_entropy(logits, target, label_smoothing=0.05)


def predictor(module: nn.Module, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """The module as a function of numpy arrays, in float32."""
    module = module.to(device).eval()

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output: np.ndarray = module(torch.from_numpy(batch).to(device)).cpu().numpy()
        return output

    return predict


def predicted(run: Callable[[np.ndarray], np.ndarray], image: Image, pipeline: Pipeline) -> np.ndarray:
    """What the task makes of an image: a label map on its own grid, or class probabilities."""
    return predict_one(task(pipeline.task), streamed(run), prepare(image, pipeline), pipeline)


def segmentation_scores(module: nn.Module, rows: Sequence[Row], pipeline: Pipeline, device: str) -> dict[str, object]:
    """Mean Dice over the test cases, per structure and over the structures, each case on its own grid."""
    predict = predictor(module, device)
    test = [row for row in rows if row["split"] == "test"]
    names = dict(enumerate(pipeline.classes))
    del names[0]
    table = np.empty((len(test), len(names)))
    for k, row in enumerate(test):
        image = read_image([Path(row["image"])])
        prediction, reference = predicted(predict, image, pipeline), read_mask(Path(row["mask"]), image)
        table[k] = [dice(prediction, reference, label=label) for label in names]
    structures = {f"dice/{name}": round(float(v), 4) for name, v in zip(names.values(), table.mean(0), strict=True)}
    return {"dice": round(float(table.mean()), 4), **structures, **_counts(test)}


def classification_scores(module: nn.Module, rows: Sequence[Row], pipeline: Pipeline, device: str) -> dict[str, object]:
    """AUROC, AUPRC and accuracy on the test cases."""
    predict = predictor(module, device)
    test = [row for row in rows if row["split"] == "test"]
    table = np.stack([predicted(predict, read_image([Path(row["image"])]), pipeline) for row in test])
    labels = np.array([pipeline.classes.index(row["label"]) for row in test])
    return {
        "auroc": round(float(auroc(table, labels)), 4),
        "auprc": round(float(auprc(table, labels)), 4),
        "accuracy": round(float(np.mean(table.argmax(1) == labels)), 4),
        **_counts(test),
    }


def _counts(test: Sequence[Row]) -> dict[str, object]:
    return {"test_cases": len(test), "test_patients": len({row["patient"] for row in test})}


def _endless(weights: Tensor, generator: torch.Generator) -> Iterator[int]:
    """Indices without end. Equal weights: one permutation after the other; else drawn with replacement."""
    equal = bool((weights == weights[0]).all())
    while True:
        count = len(weights)
        chosen = (
            torch.randperm(count, generator=generator)
            if equal
            else torch.multinomial(weights, count, replacement=True, generator=generator)
        )
        yield from chosen.tolist()
