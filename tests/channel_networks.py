"""Networks with one thing each that is easily got wrong when channels are followed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.graph.capture import capture
from microtome.graph.network import Network
from networks import randomize


class Made(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


def conv(inputs: int, outputs: int, size: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **more)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3)))


def gated(m: Any, x: Tensor) -> Tensor:
    value, gate = m.first(x).chunk(2, 1)
    return m.last(value * torch.sigmoid(gate))


def apart(m: Any, x: Tensor) -> Tensor:
    one, other = m.first(x).split([6, 10], 1)
    return m.last(torch.cat([functional.relu(one), m.deep(other)], 1))


def sliced(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    return m.last(x[:, :4] + functional.relu(x[:, 8:12]))


def padded(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    return m.last(functional.pad(x, (0, 0, 0, 0, 3, 5)) + m.deep(x))


def windows(m: Any, x: Tensor) -> Tensor:
    """Channels last, padded in space, cut into windows, mixed there, and put together again."""
    x = m.first(x).permute(0, 2, 3, 1)
    padded = functional.pad(m.norm(x), (0, 0, 0, 1, 0, 1)).roll((-1, -1), (1, 2))
    cut = padded.view(-1, 3, 3, 3, 3, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 12)
    cut = m.deep(cut).view(-1, 3, 3, 3, 3, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 9, 12)
    x = x + cut.roll((1, 1), (1, 2))[:, :8, :8]
    return m.last(functional.layer_norm(x, [12]).permute(0, 3, 1, 2))


def repeated(m: Any, x: Tensor) -> Tensor:
    return m.last(functional.relu(m.first(x) + x.repeat(1, 8, 1, 1)))


def shuffled(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    x = x.view(x.shape[0], 4, 4, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape[0], 16, x.shape[2], x.shape[3])
    return m.last(functional.relu(x))


def excited(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    gate = m.up(functional.relu(m.down(x.mean((2, 3)))))
    return m.last(x * torch.sigmoid(gate).view(x.shape[0], 16, 1, 1))


def flat(m: Any, x: Tensor) -> Tensor:
    return m.last(functional.adaptive_avg_pool2d(m.first(x), 2).flatten(1))


def tokens(m: Any, x: Tensor) -> Tensor:
    x = m.embed(x).flatten(2).transpose(1, 2)
    x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.places
    x = x + m.scale * m.mlp(m.norm(x))
    return m.last(x[:, 0])


def attended(m: Any, x: Tensor) -> Tensor:
    """Attention written out, with a bias of each head looked up in a table."""
    x = m.embed(x).flatten(2).transpose(1, 2)
    batch, count, width = x.shape
    q, k, v = m.qkv(x).view(batch, count, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
    bias = m.table[m.index].reshape(count, count, 4).permute(2, 0, 1)
    scores = torch.softmax((q * 0.25) @ k.transpose(-2, -1) + bias, -1)
    x = x + m.project((scores @ v).transpose(1, 2).reshape(batch, count, width))
    return m.last(x.mean(1))


def attention_parts() -> dict[str, Any]:
    index = torch.arange(16)
    return {
        "embed": nn.Conv2d(1, 16, 2, stride=2),
        "qkv": nn.Linear(16, 48),
        "project": nn.Linear(16, 16),
        "last": nn.Linear(16, 3),
        "table": table(7, 4),
        "index": nn.Buffer(((index[:, None] - index[None]).abs() % 7).reshape(-1)),
    }


SHAPES: dict[str, tuple[int, ...]] = {"repeated": (1, 8, 8)}
MADE: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: Made(
        lambda m, x: m.last(m.deep(m.first(x))), first=conv(1, 8), deep=conv(8, 16, groups=8), last=conv(16, 2)
    ),
    "few_groups": lambda: Made(
        lambda m, x: m.last(m.deep(m.first(x))), first=conv(1, 16), deep=conv(16, 12, groups=2), last=conv(12, 2)
    ),
    "many_groups": lambda: Made(
        lambda m, x: m.last(m.deep(m.first(x))), first=conv(1, 16), deep=conv(16, 32, groups=8), last=conv(32, 2)
    ),
    "grouped_up": lambda: Made(
        lambda m, x: m.last(m.deep(m.first(x))),
        first=conv(1, 16),
        deep=nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2),
        last=conv(12, 2),
    ),
    "group_norm": lambda: Made(
        lambda m, x: m.last(functional.relu(m.norm(m.first(x)))),
        first=conv(1, 16),
        norm=nn.GroupNorm(4, 16),
        last=conv(16, 2),
    ),
    "norm_of_two": lambda: Made(
        lambda m, x: m.last(m.norm(torch.cat([m.first(x), m.second(x)], 1))),
        first=conv(1, 6),
        second=conv(1, 10),
        norm=nn.GroupNorm(4, 16),
        last=conv(16, 2),
    ),
    "pixel_shuffle": lambda: Made(
        lambda m, x: m.last(functional.pixel_shuffle(functional.relu(m.first(x)), 2)),
        first=conv(1, 32),
        last=conv(8, 2),
    ),
    "gated": lambda: Made(gated, first=conv(1, 16), last=conv(8, 2)),
    "apart": lambda: Made(apart, first=conv(1, 16), deep=conv(10, 8), last=conv(14, 2)),
    "sliced": lambda: Made(sliced, first=conv(1, 12), last=conv(4, 2)),
    "padded": lambda: Made(padded, first=conv(1, 8), deep=conv(8, 16), last=conv(16, 2)),
    "windows": lambda: Made(
        windows, first=conv(1, 12), norm=nn.LayerNorm(12), deep=nn.Linear(12, 12), last=conv(12, 2)
    ),
    "repeated": lambda: Made(repeated, first=conv(1, 8), last=conv(8, 2)),
    "shuffled": lambda: Made(shuffled, first=conv(1, 16), last=conv(16, 2)),
    "excited": lambda: Made(excited, first=conv(1, 16), down=nn.Linear(16, 4), up=nn.Linear(4, 16), last=conv(16, 2)),
    "flat": lambda: Made(flat, first=conv(1, 8), last=nn.Linear(32, 2)),
    "tokens": lambda: Made(
        tokens,
        embed=nn.Conv2d(1, 16, 4, stride=4),
        token=table(1, 1, 16),
        places=table(1, 5, 16),
        scale=table(16),
        norm=nn.LayerNorm(16),
        mlp=nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)),
        last=nn.Linear(16, 3),
    ),
    "attended": lambda: Made(attended, **attention_parts()),
}


@functools.cache
def made(name: str) -> Network:
    return capture(randomize(MADE[name]()), SHAPES.get(name, (1, 8, 8)))
