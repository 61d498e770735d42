"""A network with two inputs and three outputs, some with names that its own operators have too."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from microtome.graph.capture import capture
from microtome.graph.network import Network
from networks import randomize

SHAPES = {"image": (1, 8, 8), "prompt": (3,)}
KEPT = ("scores", "relu", "mean")


class Prompted(nn.Module):
    """An image and a vector in; scores at twice the size, features, and a mean out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(3, 4), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor, prompt: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.enter(image))
        scores = self.head(features + self.mix(prompt)[:, :, None, None])
        scores = nn.functional.interpolate(scores, scale_factor=2.0)
        return {"relu": features, "scores": scores, "mean": scores.mean((2, 3))}


@functools.cache
def prompted() -> Network:
    """Return the captured graph, scores first; the same object for all tests, which must not change it."""
    return capture(randomize(Prompted()), SHAPES, keep=KEPT)


def batches(count: int = 3, *, size: int = 2, side: tuple[int, int] = (8, 8), seed: int = 0) -> list[dict[str, Tensor]]:
    """Return random inputs by name."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randn((size, 1, *side), generator=generator),
            "prompt": torch.randn((size, 3), generator=generator),
        }
        for _ in range(count)
    ]
