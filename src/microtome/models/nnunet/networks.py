"""The networks that nnU-Net plans: U-Nets of plain or of residual blocks, with the names of its weights.

Plain blocks are those of Isensee et al. (Nature Methods 2021), residual ones ResNet-D's (He et al., CVPR 2019), the
presets with them Isensee et al. (MICCAI 2024). Built from the plans' own words; inference only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Sizes = Sequence[int]
OPERATORS = {
    **{f"Conv{d}d": getattr(nn, f"Conv{d}d") for d in (2, 3)},
    **{f"InstanceNorm{d}d": getattr(nn, f"InstanceNorm{d}d") for d in (2, 3)},
    **{f"BatchNorm{d}d": getattr(nn, f"BatchNorm{d}d") for d in (2, 3)},
    **{f"Dropout{d}": getattr(nn, f"Dropout{d}") for d in ("", "2d", "3d")},
    **{name: getattr(nn, name) for name in ("LeakyReLU", "ReLU", "GELU", "SiLU", "ELU", "PReLU", "Mish")},
}
"""What plans name by their import paths: the last part of it."""


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    Attributes:
        dims: spatial axes, 2 or 3.
        bias: of convolutions.
        norm: makes the normalization of so many channels; None is none.
        nonlin: makes the activation; None is none.
        nonlin_first: the activation stands before the normalization.
    """

    dims: int
    bias: bool
    norm: Callable[[int], nn.Module] | None
    nonlin: Callable[[], nn.Module] | None
    nonlin_first: bool = False

    def conv(self, inputs: int, outputs: int, kernel: Sizes, stride: Sizes, *, bias: bool | None = None) -> nn.Module:
        """Return a convolution that keeps the size but for its stride."""
        kind: Any = nn.Conv3d if self.dims == 3 else nn.Conv2d
        padding = tuple((n - 1) // 2 for n in kernel)
        bias = self.bias if bias is None else bias
        made: nn.Module = kind(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)
        return made

    def sizes(self, value: int | Sizes) -> tuple[int, ...]:
        """Return one number per axis."""
        return (value,) * self.dims if isinstance(value, int) else tuple(int(n) for n in value)


class Block(nn.Module):
    """Convolution, normalization, activation."""

    def __init__(
        self,
        style: Style,
        channels: tuple[int, int],
        kernel: Sizes,
        stride: Sizes,
        *,
        nonlin: bool = True,
        bias: bool | None = None,
    ) -> None:
        """Build it; without `nonlin`, no activation follows."""
        super().__init__()
        self.conv = style.conv(*channels, kernel, stride, bias=bias)
        self.norm = style.norm(channels[1]) if style.norm else nn.Identity()
        self.nonlin = style.nonlin() if style.nonlin and nonlin else nn.Identity()
        self.nonlin_first = style.nonlin_first and style.norm is not None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) → (N, K, *S / stride)."""
        x = self.conv(x)
        found: Tensor = self.norm(self.nonlin(x)) if self.nonlin_first else self.nonlin(self.norm(x))
        return found


class Blocks(nn.Module):
    """Several in a row; the first one strides."""

    def __init__(self, style: Style, channels: tuple[int, int], kernel: Sizes, stride: Sizes, count: int) -> None:
        """Build them."""
        super().__init__()
        one = style.sizes(1)
        first, last = channels
        self.convs = nn.Sequential(
            *(Block(style, (last if k else first, last), kernel, one if k else stride) for k in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) → (N, K, *S / stride)."""
        found: Tensor = self.convs(x)
        return found


class Residual(nn.Module):
    """Two convolutions beside a shortcut that averages where the block strides, and projects where channels change."""

    def __init__(self, style: Style, channels: tuple[int, int], kernel: Sizes, stride: Sizes) -> None:
        """Build it."""
        super().__init__()
        one = style.sizes(1)
        self.conv1 = Block(style, channels, kernel, stride)
        self.conv2 = Block(style, (channels[1], channels[1]), kernel, one, nonlin=False)
        self.nonlin2 = style.nonlin() if style.nonlin else nn.Identity()
        pool: Any = nn.AvgPool3d if style.dims == 3 else nn.AvgPool2d
        steps: list[nn.Module] = [pool(tuple(stride), tuple(stride))] if tuple(stride) != one else []
        if channels[0] != channels[1]:
            steps.append(Block(style, channels, one, one, nonlin=False, bias=False))
        self.skip = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) → (N, K, *S / stride)."""
        found: Tensor = self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))
        return found


class Residuals(nn.Module):
    """Several residual blocks in a row; the first one strides."""

    def __init__(self, style: Style, channels: tuple[int, int], kernel: Sizes, stride: Sizes, count: int) -> None:
        """Build them."""
        super().__init__()
        one, (first, last) = style.sizes(1), channels
        self.blocks = nn.Sequential(
            *(Residual(style, (last if k else first, last), kernel, one if k else stride) for k in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) → (N, K, *S / stride)."""
        found: Tensor = self.blocks(x)
        return found


class Encoder(nn.Module):
    """From the image down: the output of every stage."""

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None) -> None:
        """Take the stages, and what stands before them."""
        super().__init__()
        if stem is not None:
            self.stem = stem
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the stages, the finest first."""
        x = self.stem(x) if hasattr(self, "stem") else x
        return list(itertools.accumulate(self.stages, lambda value, stage: stage(value), initial=x))[1:]


class Decoder(nn.Module):
    """From the coarsest stage up: transposed convolution, the finer stage beside it, convolutions; then scores."""

    def __init__(self, ups: Sequence[nn.Module], stages: Sequence[nn.Module], scores: Sequence[nn.Module]) -> None:
        """Take the modules of every stage, the coarsest first; only the last scores are used."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(ups)
        self.seg_layers = nn.ModuleList(scores)

    def forward(self, skips: list[Tensor]) -> Tensor:
        """Return the scores (N, K, *S) of the finest stage."""
        x = skips[-1]
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        found: Tensor = self.seg_layers[-1](x)
        return found


class UNet(nn.Module):
    """Encoder and decoder."""

    def __init__(self, inputs: int, outputs: int, words: Mapping[str, Any], *, title: str) -> None:
        """Build the network that plans describe.

        Args:
            inputs: channels of the image.
            outputs: channels of the scores.
            words: `arch_kwargs` of the plans, with operators instead of their names, see `operators`.
            title: `PlainConvUNet`, `ResidualEncoderUNet` or `ResidualUNet`.
        """
        super().__init__()
        style = _style(words)
        count = int(words["n_stages"])
        widths = _each(words["features_per_stage"], count)
        kernels = [style.sizes(k) for k in _each(words["kernel_sizes"], count)]
        strides = [style.sizes(s) for s in _each(words["strides"], count)]
        residual = title != "PlainConvUNet"
        depths = _each(words["n_blocks_per_stage" if residual else "n_conv_per_stage"], count)
        first = int(words.get("stem_channels") or widths[0]) if residual else inputs
        stem = Blocks(style, (inputs, first), kernels[0], style.sizes(1), 1) if residual else None
        stages: list[nn.Module] = []
        for width, before, kernel, stride, depth in zip(
            widths, [first, *widths], kernels, strides, depths, strict=False
        ):
            kind = Residuals if residual else Blocks
            stage: nn.Module = kind(style, (before, width), kernel, stride, depth)
            stages.append(stage if residual else nn.Sequential(stage))
        self.encoder = Encoder(stages, stem)
        ups: list[nn.Module] = []
        merged: list[nn.Module] = []
        scores: list[nn.Module] = []
        up: Any = nn.ConvTranspose3d if style.dims == 3 else nn.ConvTranspose2d
        kind = Residuals if title == "ResidualUNet" else Blocks
        for k, depth in enumerate(_each(words["n_conv_per_stage_decoder"], count - 1)):
            below, width, stride = widths[-1 - k], widths[-2 - k], strides[-1 - k]
            ups.append(up(below, width, stride, stride, bias=style.bias))
            merged.append(kind(style, (2 * width, width), kernels[-2 - k], style.sizes(1), depth))
            scores.append(style.conv(width, outputs, style.sizes(1), style.sizes(1), bias=True))
        self.decoder = Decoder(ups, merged, scores)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) → scores (N, K, *S)."""
        found: Tensor = self.decoder(self.encoder(x))
        return found


class Mean(nn.Module):
    """Several networks on one image: the mean of their scores."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Take the networks."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the scores (N, K, *S)."""
        total: Tensor = self.members[0](x)
        for member in itertools.islice(self.members, 1, None):
            total = total + member(x)
        return total * (1 / len(self.members))


def _style(words: Mapping[str, Any]) -> Style:
    norm, nonlin = words.get("norm_op"), words.get("nonlin")
    norm_words, nonlin_words = dict(words.get("norm_op_kwargs") or {}), dict(words.get("nonlin_kwargs") or {})
    nonlin_words.pop("inplace", None)  # the same values, and a graph without writes
    return Style(
        dims=3 if words["conv_op"] is nn.Conv3d else 2,
        bias=bool(words.get("conv_bias", False)),
        norm=None if norm is None else lambda channels: norm(channels, **norm_words),
        nonlin=None if nonlin is None else lambda: nonlin(**nonlin_words),
        nonlin_first=bool(words.get("nonlin_first", False)),
    )


def _each(value: Any, count: int) -> list[Any]:
    """A value per stage, where one may stand for all."""
    return [value] * count if isinstance(value, int) else list(value)
