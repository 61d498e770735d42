"""Tiny networks for tests: plain modules, fixed random weights, and their captured graphs (made once per session)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.types import Capabilities, OperatorSupport, QType

torch.set_num_threads(1)


class Of(nn.Module):
    """A function of an image and of layers."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.layers)


class UNet2d(nn.Module):
    """One level down and up: batch norm, PReLU, a strided convolution, a concatenation, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.PReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.PReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.leave = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        return self.leave(torch.cat([skip, self.up(self.down(skip))], 1))


class ConcatUp2d(nn.Module):
    """A transposed convolution that reads a concatenation, as in MONAI's U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 8, 3, stride=2, padding=1, output_padding=1)
        self.leave = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = functional.relu(self.enter(x))
        return self.leave(functional.relu(self.up(torch.cat([skip, self.deep(skip)], 1))))


class Residual3d(nn.Module):
    """A residual block with instance norm, in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv3d(1, 16, 3, padding=1)
        self.first = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.InstanceNorm3d(16, affine=True), nn.LeakyReLU())
        self.second = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.InstanceNorm3d(16))
        self.leave = nn.Conv3d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(functional.relu(x + self.second(self.first(x))))


class Dense2d(nn.Module):
    """Batch norm and ReLU before each convolution, concatenations, poolings and a linear head, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(32)])
        self.convs = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)])
        self.last = nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.enter(x), 2)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        x = functional.adaptive_avg_pool2d(functional.relu(self.last(x)), 1)
        return self.head(torch.flatten(x, 1))


class Transformer(nn.Module):
    """Patch embedding, one block of attention and MLP with layer norms, a linear head on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.qkv, self.project = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norms[0](x)).reshape(x.shape[0], -1, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.project(attended)
        x = x + self.mlp(self.norms[1](x))
        return self.head(x.mean(1))


class Shared2d(nn.Module):
    """One convolution that is used twice, each time with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.one, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(functional.relu(self.one(self.conv(self.enter(x))))))


class Tied2d(nn.Module):
    """Two convolutions that hold the same weight and the same bias tensors, each with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.one, self.other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.b(functional.relu(self.one(self.a(x)))))


class Nothing(nn.Module):
    """A network without any layer that has a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(torch.tanh(x), 2)


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "unet2d": (UNet2d, (3, 16, 16)),
    "concat_up2d": (ConcatUp2d, (3, 16, 16)),
    "residual3d": (Residual3d, (1, 8, 8, 8)),
    "dense2d": (Dense2d, (3, 16, 16)),
    "transformer": (Transformer, (3, 16, 16)),
    "shared2d": (Shared2d, (1, 8, 8)),
    "tied2d": (Tied2d, (2, 8, 8)),
    "nothing": (Nothing, (1, 8, 8)),
}

REAL = ("unet2d", "concat_up2d", "residual3d", "dense2d", "transformer")
"""Networks that look like real ones: with layers for an integer runtime."""

UNSIGNED = QType(8, signed=False, symmetric=False)
WEIGHT = QType(8, narrow=True)
EVERYTHING = Capabilities(
    "test",
    operators={kind: OperatorSupport(UNSIGNED, WEIGHT) for kind in ("conv", "conv_transpose", "linear")},
    transparent=frozenset({"concat", "max_pool"}),
)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module fixed random weights, and its batch norms statistics that are not 0 and 1; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 2.0),
                (layer.weight, -1.5, 1.5),
                (layer.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            fan = layer.weight[0].numel()
            layer.weight.data.normal_(0, (2 / fan) ** 0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.data.uniform_(-0.2, 0.2, generator=generator)
    return module.eval()


def build(name: str) -> nn.Module:
    """Return a network of NETWORKS with fixed random weights."""
    return randomize(NETWORKS[name][0]())


@functools.cache
def captured(name: str) -> Network:
    """Return the captured graph of a network of NETWORKS; the same object for all tests, which must not change it."""
    return capture(build(name), NETWORKS[name][1])


def images(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> list[Tensor]:
    """Return batches of two smooth random images with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        coarse = torch.randn((2, shape[0], *(2,) * (len(shape) - 1)), generator=generator)
        mode = "bilinear" if len(shape) == 3 else "trilinear"
        smooth = functional.interpolate(coarse, shape[1:], mode=mode, align_corners=True)
        batches.append(smooth + 0.3 * torch.randn((2, *shape), generator=generator) + 0.2)
    return batches


def told(batches: Iterable[Any] = (), **more: Any) -> Context:
    """Return what methods are run with: calibration images, and a target that runs everything in integers."""
    return Context(batches, capabilities=EVERYTHING, **more)


def sqnr_db(expected: Tensor, actual: Tensor) -> float:
    """Signal-to-quantization-noise ratio in decibels: 10 log10(sum expected² / sum error²)."""
    noise = float((expected - actual).detach().square().sum())
    return float("inf") if noise == 0 else 10 * math.log10(float(expected.detach().square().sum()) / noise)
