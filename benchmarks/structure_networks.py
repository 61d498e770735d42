"""The networks that structure is measured on: MONAI's in their usual width, and nnU-Net's, each also small for tests.

Volumes are as small as the networks allow: what can be removed does not depend on their size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from microtome.models.nnunet.networks import UNet as NnUnet


@dataclass(frozen=True)
class Subject:
    """A network and its input (C, *S); `fixed` where windows of attention make torch.export slow with free sizes."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    fixed: bool = False


def monai(name: str, *args: Any, **words: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks import nets

        network: nn.Module = getattr(nets, name)(*args, **words)
        return network

    return build


def nnunet(title: str, widths: tuple[int, ...], blocks: int) -> Callable[[], nn.Module]:
    count = len(widths)
    words = {
        **{"n_stages": count, "features_per_stage": widths, "kernel_sizes": [[3, 3, 3]] * count},
        **{"strides": [[1, 1, 1], *[[2, 2, 2]] * (count - 1)], "conv_op": nn.Conv3d, "conv_bias": True},
        **{"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU},
        **{"n_conv_per_stage": blocks, "n_blocks_per_stage": blocks, "n_conv_per_stage_decoder": blocks},
    }
    return lambda: NnUnet(1, 3, words, title=title)


def highres(first: int, repeat: int) -> Callable[[], nn.Module]:
    layers = (
        {"name": "conv_0", "n_features": first, "kernel_size": 3},
        {"name": "res_1", "n_features": first, "kernels": (3, 3), "repeat": repeat},
        {"name": "res_2", "n_features": 2 * first, "kernels": (3, 3), "repeat": repeat},
        {"name": "res_3", "n_features": 4 * first, "kernels": (3, 3), "repeat": repeat},
        {"name": "conv_1", "n_features": 5 * first, "kernel_size": 1},
        {"name": "conv_2", "kernel_size": 1},
    )
    return monai("HighResNet", spatial_dims=3, in_channels=1, out_channels=2, layer_params=layers)


def dynunet(filters: tuple[int, ...]) -> Callable[[], nn.Module]:
    kernels, strides = [3] * len(filters), [1, *[2] * (len(filters) - 1)]
    words = {"kernel_size": kernels, "strides": strides, "upsample_kernel_size": strides[1:], "filters": filters}
    return monai("DynUNet", 3, 1, 3, res_block=True, **words)


def subjects(*, small: bool = False) -> list[Subject]:
    """Return all networks of the list, in their usual width or small."""

    def either(usual: Any, little: Any) -> Any:
        return little if small else usual

    unet = either((32, 64, 128, 256, 512), (8, 16, 32))
    steps = (2,) * (len(unet) - 1)
    vit = {"hidden_size": either(384, 48), "mlp_dim": either(1536, 96), "num_heads": either(6, 4)}
    dense = either({}, {"init_features": 16, "growth_rate": 8, "block_config": (2, 3, 2)})
    res = either(([3, 4, 6, 3], [64, 128, 256, 512]), ([1, 2, 1, 1], [8, 16, 32, 64]))
    two = {"spatial_dims": 2, "in_channels": 3}
    three = {"spatial_dims": 3, "in_channels": 1}
    swin = either(
        {"feature_size": 24}, {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "window_size": 2}
    )
    nn_unet = either((32, 64, 128, 256, 320), (8, 16, 16))
    seg = either({"init_filters": 16}, {"init_filters": 8, "blocks_down": (1, 1, 2), "blocks_up": (1, 1)})
    seg_ds = either({}, {"init_filters": 8, "blocks_down": (1, 2, 2)})
    return [
        Subject("UNet 2-D", monai("UNet", 2, 3, 2, unet, steps, norm="batch"), (3, 32, 32)),
        Subject("UNet 3-D", monai("UNet", 3, 4, 3, unet, steps, num_res_units=2), (4, 32, 32, 32)),
        Subject(
            "BasicUNet",
            monai(
                "BasicUNet", **three, out_channels=2, features=either((32, 32, 64, 128, 256, 32), (8, 8, 16, 16, 32, 8))
            ),
            (1, 32, 32, 32),
        ),
        Subject("DynUNet", dynunet(nn_unet), (1, 32, 32, 32)),
        Subject("SegResNet", monai("SegResNet", spatial_dims=3, in_channels=4, out_channels=3, **seg), (4, 16, 16, 16)),
        Subject("SegResNetDS", monai("SegResNetDS", **three, out_channels=2, dsdepth=1, **seg_ds), (1, 32, 32, 32)),
        Subject("SwinUNETR", monai("SwinUNETR", 1, 3, **swin), (1, 64, 64, 64), fixed=True),
        Subject(
            "UNETR",
            monai("UNETR", 1, 3, img_size=(32,) * 3, feature_size=either(16, 8), **vit),
            (1, 32, 32, 32),
        ),
        Subject("AttentionUnet", monai("AttentionUnet", 2, 1, 2, unet, steps), (1, 32, 32)),
        Subject("VNet", monai("VNet", **three, out_channels=2), (1, 32, 32, 32)),
        Subject("HighResNet", highres(either(16, 8), either(3, 1)), (1, 16, 16, 16)),
        Subject("DenseNet121", monai("DenseNet121", **two, out_channels=4, **dense), (3, 64, 64)),
        Subject(
            "ResNet50",
            monai("ResNet", "bottleneck", *res, spatial_dims=2, n_input_channels=3, num_classes=4),
            (3, 64, 64),
        ),
        Subject("EfficientNet-B0", monai("EfficientNetBN", "efficientnet-b0", False, num_classes=4), (3, 64, 64)),
        Subject(
            "ViT",
            monai(
                "ViT",
                3,
                (32, 32),
                (8, 8),
                num_layers=either(12, 2),
                **vit,
                **{"classification": True, "num_classes": 4},
                spatial_dims=2,
                post_activation="none",
            ),
            (3, 32, 32),
        ),
        Subject(
            "FlexibleUNet",
            monai(
                "FlexibleUNet",
                3,
                2,
                "efficientnet-b0",
                spatial_dims=2,
                decoder_channels=either((256, 128, 64, 32, 16), (32, 16, 16, 8, 8)),
            ),
            (3, 64, 64),
        ),
        Subject("PlainConvUNet", nnunet("PlainConvUNet", nn_unet, 2), (1, 32, 32, 32)),
        Subject("ResidualEncoderUNet", nnunet("ResidualEncoderUNet", nn_unet, 2), (1, 32, 32, 32)),
    ]
