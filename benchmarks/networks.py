"""The reference networks: three published architectures as plain modules, and six of MONAI's.

The modules of the published ones carry the names that their published weights have, so that `load_published` can be
strict: every tensor of the file finds its place and none is left over.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MESHNET_DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)
MESHNET_CLASSES = (
    "background",
    "cerebral white matter",
    "cortex",
    "lateral ventricle",
    "inferior lateral ventricle",
    "cerebellum white matter",
    "cerebellum cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
    "3rd ventricle",
    "4th ventricle",
    "brain stem",
    "hippocampus",
    "amygdala",
    "accumbens",
    "ventral DC",
)
# Expansion, channels, repeats, stride of the first: table 2 of Sandler et al., MobileNetV2, CVPR 2018.
MOBILENET_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class WNet(nn.Module):
    """Little W-Net for retinal vessels (Galdran et al., Scientific Reports 2022): (N, 3, H, W) → logit (N, 1, H, W).

    Two small U-Nets; the second sees the image and the first one's logit. H and W must be divisible by 4.
    """

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.unet1 = ResidualUNet(3, widths)
        self.unet2 = ResidualUNet(4, widths)

    def forward(self, x: Tensor) -> Tensor:
        return self.unet2(torch.cat([x, self.unet1(x)], dim=1))


class ResidualUNet(nn.Module):
    """U-Net of residual blocks with one output channel."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        steps = list(itertools.pairwise(widths))
        self.first = ResidualBlock(channels, widths[0])
        self.down_path = nn.ModuleList(ResidualBlock(a, b) for a, b in steps)
        self.up_path = nn.ModuleList(UpBlock(b, a) for a, b in reversed(steps))
        self.final = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = []
        for block in self.down_path:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for block, skip in zip(self.up_path, reversed(skips), strict=True):
            x = block(x, skip)
        return self.final(x)


class ResidualBlock(nn.Module):
    """Two convolutions, each with ReLU and then batch norm, plus a 1×1 shortcut; nothing after the sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*_conv_relu_norm(inputs, outputs), *_conv_relu_norm(outputs, outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.shortcut(x)


class UpBlock(nn.Module):
    """Upsample, join with the bridged skip, residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up_layer = _Block(nn.ConvTranspose2d(inputs, outputs, 2, stride=2))
        self.conv_bridge_layer = _Block(*_conv_relu_norm(outputs, outputs))
        self.conv_layer = ResidualBlock(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_layer(torch.cat([self.up_layer(x), self.conv_bridge_layer(skip)], dim=1))


class _Block(nn.Module):
    """A sequence that goes by the name `block` in the published weights."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def _conv_relu_norm(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)


class MeshNet(nn.Module):
    """MeshNet (Fedorov et al., IJCNN 2017; brainchop): (N, 1, D, H, W) → (N, classes, D, H, W).

    Nine dilated 3×3×3 convolutions and a 1×1×1 one; width 21 goes with ELU, width 5 with ReLU.
    """

    def __init__(self, classes: int = 18, width: int = 21) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for dilation in MESHNET_DILATIONS:
            layers += [nn.Conv3d(inputs, width, 3, padding=dilation, dilation=dilation)]
            # In place: at 256³ each activation of width 21 takes 1.4 GB.
            layers += [nn.ELU(inplace=True) if width > 5 else nn.ReLU(inplace=True)]
            inputs = width
        self.model = nn.Sequential(*layers, nn.Conv3d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 with batch norm already folded: (N, 3, H, W) in [−1, 1] → logits (N, classes).

    TensorFlow's "SAME" padding: where the stride is 2 and the size even, one row and column of zeros at the end only.
    """

    def __init__(self, classes: int = 1001) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvReLU6(3, 32, 3, stride=2)]
        inputs = 32
        for expansion, outputs, repeats, stride in MOBILENET_BLOCKS:
            for repeat in range(repeats):
                features.append(InvertedResidual(inputs, outputs, expansion, stride if repeat == 0 else 1))
                inputs = outputs
        features.append(ConvReLU6(inputs, 1280, 1))
        self.features = nn.Sequential(*features)
        self.head = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


class ConvReLU6(nn.Module):
    """Convolution with bias, TensorFlow's padding, and ReLU6 unless `linear`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        self.act = nn.Identity() if linear else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.pad(x)))


class InvertedResidual(nn.Module):
    """Expand (1×1), depthwise (3×3), project (1×1, linear); plus the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [ConvReLU6(inputs, width, 1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            ConvReLU6(width, width, 3, stride=stride, groups=width),
            ConvReLU6(width, outputs, 1, linear=True),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def unet(spatial_dims: int, channels: int, classes: int, *, norm: str, depth: int) -> nn.Module:
    """MONAI's residual U-Net, PReLU: (N, channels, *S) → (N, classes, *S).

    Widths 32, 64, …, doubling at each of `depth` halvings; every size in S must be divisible by 2 ** depth.
    """
    from monai.networks.nets import UNet

    widths = [32 * 2**level for level in range(depth + 1)]
    return UNet(spatial_dims, channels, classes, widths, [2] * depth, num_res_units=2, norm=norm)


def dynunet(channels: int, classes: int, *, depth: int = 3) -> nn.Module:
    """MONAI's DynUNet, the plain network of nnU-Net, instance norm: (N, channels, D, H, W) → (N, classes, D, H, W).

    Widths 32, 64, …, doubling at each of `depth` halvings; D, H and W must be divisible by 2 ** depth.
    """
    from monai.networks.nets import DynUNet

    strides = [1] + [2] * depth
    kernels = [3] * (depth + 1)
    return DynUNet(3, channels, classes, kernels, strides, strides[1:], filters=[32 * 2**k for k in range(depth + 1)])


def segresnet(channels: int, classes: int) -> nn.Module:
    """MONAI's SegResNet with group norm (Myronenko, BrainLes 2018): (N, channels, D, H, W) → (N, classes, D, H, W).

    Three halvings, so that D, H and W must be divisible by 8.
    """
    from monai.networks.nets import SegResNet

    return SegResNet(3, init_filters=16, in_channels=channels, out_channels=classes)


def resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 for pictures (He et al., CVPR 2016): (N, channels, H, W) → logits (N, classes)."""
    from monai.networks.nets import resnet18 as monai_resnet18

    # MONAI's own default for the first stride is 1; He et al. have 2.
    return monai_resnet18(spatial_dims=2, n_input_channels=channels, num_classes=classes, conv1_t_stride=2)


class ScoresOnly(nn.Module):
    """The first output of a module that returns several, as `forward` of MONAI's ViT does with its hidden states."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)[0]
        return scores


def vit(channels: int, classes: int, size: tuple[int, int], *, width: int = 192, layers: int = 8) -> nn.Module:
    """MONAI's vision transformer (Dosovitskiy et al., ICLR 2021): (N, channels, *size) → logits (N, classes).

    Patches of 16 × 16 pixels, heads of 64 channels, class token; `size` must be divisible by 16, `width` by 64.
    """
    from monai.networks.nets import ViT

    network = ViT(
        channels,
        size,
        16,
        hidden_size=width,
        mlp_dim=4 * width,
        num_layers=layers,
        num_heads=width // 64,
        classification=True,
        num_classes=classes,
        spatial_dims=2,
        post_activation=None,  # the default is tanh, which is no logit
        qkv_bias=True,
    )
    return ScoresOnly(network)


def swin_unetr(channels: int, classes: int, *, width: int = 12, depths: tuple[int, ...] = (2, 2, 2, 2)) -> nn.Module:
    """MONAI's SwinUNETR (Hatamizadeh et al., 2022) for small volumes: (N, channels, D, H, W) → (N, classes, D, H, W).

    Windows of 4³ tokens and heads of 12 channels; D, H and W must be divisible by 32, `width` by 12. The convolutions
    have group norm: few voxels are left at the deepest level, and instance norm would make mere signs of two.
    """
    from monai.networks.nets import SwinUNETR

    heads = tuple(width // 12 * 2**level for level in range(4))
    sizes = {"depths": depths, "num_heads": heads, "window_size": 4, "feature_size": width}
    return SwinUNETR(channels, classes, norm_name=("group", {"num_groups": 4}), **sizes)


def load_published(module: nn.Module, path: Path) -> nn.Module:
    """Put published weights into a module, strictly, and return it in evaluation mode.

    `.safetensors` hold a state dict. `.npz` hold int8 weights `NAME.q` with `NAME.scale` per output channel and a float
    `NAME.bias`: weight = q × scale.
    """
    if path.suffix == ".npz":
        state = _dequantized(path)
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    module.load_state_dict(state, strict=True)
    return module.eval()


def _dequantized(path: Path) -> dict[str, Tensor]:
    state = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            name, part = key.rsplit(".", 1)
            if part == "bias":
                state[key] = torch.from_numpy(arrays[key].astype(np.float32))
            if part == "q":
                q = arrays[key].astype(np.float32)
                scale = arrays[f"{name}.scale"].reshape(-1, *[1] * (q.ndim - 1)).astype(np.float32)
                state[f"{name}.weight"] = torch.from_numpy(q * scale)
    return state
