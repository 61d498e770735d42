"""Train the demo's U-Net on phantoms and write the weights that microtome ships.

    python benchmarks/train_demo.py [--steps 1800] [--out src/microtome/demo/unet.safetensors]

5 to 8 minutes on one core with AMX. Seeded: the same weights on the same machine.
Training patients have seeds from 10,000,000, the held-out ones from 20,000,000; the demo's own cohort uses seeds below.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from microtome.demo.network import UNet
from microtome.demo.phantom import CLASSES, make_case

OUT = Path(__file__).resolve().parents[1] / "src" / "microtome" / "demo" / "unet.safetensors"
TRAIN_SEEDS, HELD_OUT_SEEDS = 10_000_000, 20_000_000
BATCH, CROP, SIZE = 8, 128, 192
RATE = 4e-3
CLASS_WEIGHTS = torch.tensor([1.0, 1.0, 2.0, 3.0])  # ventricles and lesions are 1 to 3 % of the pixels


def standardized(image: np.ndarray) -> np.ndarray:
    """As `normalize: zscore` does: mean 0, standard deviation 1 of the whole slice."""
    x = image.astype(np.float32)
    return (x - x.mean()) / x.std()


def batch(rng: np.random.Generator, step: int) -> tuple[Tensor, Tensor]:
    """New phantoms in every step: random crops of slices, mirrored half of the time."""
    images, masks = [], []
    for k in range(BATCH):
        image, mask, _ = make_case(TRAIN_SEEDS + step * BATCH + k, SIZE, slice_number=int(rng.integers(2)))
        top, left = rng.integers(0, SIZE - CROP + 1, 2)
        window = (slice(top, top + CROP), slice(left, left + CROP))
        x, y = standardized(image)[window], mask[window]
        if rng.random() < 0.5:
            x, y = x[:, ::-1], y[:, ::-1]
        x = x * rng.uniform(0.9, 1.1) + rng.normal(0, 0.05)
        images.append(x.astype(np.float32))
        masks.append(y.astype(np.int64))
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice over the batch (as in nnU-Net, Isensee et al. 2021)."""
    probabilities = logits.softmax(1)
    truth = functional.one_hot(labels, len(CLASSES)).movedim(-1, 1).float()
    both = (probabilities * truth).sum((0, 2, 3))[1:]
    either = (probabilities + truth).sum((0, 2, 3))[1:]
    soft_dice = (2 * both + 1) / (either + 1)
    return functional.cross_entropy(logits, labels, CLASS_WEIGHTS) + 1 - soft_dice.mean()


def train(steps: int) -> UNet:
    """Adam with a cosine schedule, then new batch-norm statistics in float32."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = UNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    start = time.monotonic()
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = batch(rng, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        value = loss(logits.float(), y)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if step % 50 == 49:
            print(
                f"step {step + 1}  {time.monotonic() - start:4.0f} s  loss {value.item():.3f}  rate {rate:.1e}",
                flush=True,
            )
    settle(network, rng, first=steps)
    return network


def settle(network: UNet, rng: np.random.Generator, *, first: int, batches: int = 48) -> None:
    """Replace the running batch-norm statistics by plain averages over new batches, with the final weights in float32.

    The batches are crops, as in training: whole slices hold more air, other statistics, and cost 0.5 of Dice.
    """
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for step in range(first, first + batches):
            network(batch(rng, step)[0])
    network.eval()


def held_out_dice(network: UNet, cases: int = 60) -> dict[str, float]:
    """Mean Dice per structure over held-out phantoms; cases without the structure in both masks are left out."""
    values: dict[str, list[float]] = {name: [] for name in CLASSES[1:]}
    for seed in range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + cases):
        image, mask, _ = make_case(seed, SIZE)
        with torch.no_grad():
            found = network(torch.from_numpy(standardized(image))[None, None])[0].argmax(0).numpy()
        for label, name in enumerate(CLASSES[1:], start=1):
            total = int((found == label).sum() + (mask == label).sum())
            if total:
                values[name].append(2 * int(((found == label) & (mask == label)).sum()) / total)
    return {name: float(np.mean(v)) for name, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = train(options.steps)
    half = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    save_file(half, options.out)
    network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in half.items()})
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {options.out.stat().st_size:,} bytes")
    for name, value in held_out_dice(network).items():
        print(f"held-out Dice, {name}: {value:.4f}")


if __name__ == "__main__":
    main()
