"""One training loop for all reference networks: stages of fixed length, one-cycle learning rate, bfloat16 where faster.

Images lie in memory as prepared by the pipeline. Every batch is drawn with a random affine map, which also sets the
size that a stage trains at, so that early stages can be small and fast.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
LOG_SECONDS = 20.0
MAX_NORM = 12.0  # of the gradient, as nnU-Net clips it


@dataclass(frozen=True)
class Stage:
    """A stretch of training: `steps` batches of `batch` images of `size`, which show `extent` of the stored image."""

    steps: int
    batch: int
    size: tuple[int, ...]
    extent: tuple[float, ...]


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
    """How a network is trained."""

    stages: tuple[Stage, ...]
    loss: Loss
    augmentation: Augmentation = field(default_factory=Augmentation)
    rate: float = 2e-3
    decay: float = 1e-2
    seed: int = 0


def train(module: nn.Module, examples: Examples, recipe: Recipe, *, device: str = "cpu") -> nn.Module:
    """Train a module in place with AdamW and one cycle of the learning rate; return it in evaluation mode."""
    generator = torch.Generator().manual_seed(recipe.seed)
    module.to(device=device, memory_format=_memory_format(examples.images.ndim)).train()
    total = sum(stage.steps for stage in recipe.stages)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=total, pct_start=0.15)
    started = said = time.monotonic()
    step, mean = 0, math.nan
    order = _endless(examples.weights, generator)
    for stage in recipe.stages:
        for _ in range(stage.steps):
            chosen = torch.tensor(list(itertools.islice(order, stage.batch)))
            x, y = draw(examples, chosen, stage, recipe.augmentation, generator)
            with torch.autocast(device, torch.bfloat16):
                output = module(x.to(device, memory_format=_memory_format(x.ndim)))
            loss = recipe.loss(output.float(), y.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            step += 1
            value = float(loss.detach())
            mean = value if math.isnan(mean) else 0.95 * mean + 0.05 * value
            now = time.monotonic()
            if now - said > LOG_SECONDS or step == total:
                said = now
                left = (now - started) / step * (total - step)
                print(f"step {step}/{total}, loss {mean:.4f}, {now - started:.0f} s, about {left:.0f} s left", flush=True)
    return module.to("cpu", memory_format=torch.contiguous_format).eval()


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


def _endless(weights: Tensor, generator: torch.Generator):  # type: ignore[no-untyped-def]
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


def _memory_format(ndim: int) -> torch.memory_format:
    return torch.channels_last_3d if ndim == 5 else torch.channels_last
