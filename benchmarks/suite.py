"""The networks that speed is measured on: ten common architectures of medical imaging, batch 1.

Nine have random weights: speed does not depend on their values. Their batch norms get the statistics of the input, as
training leaves them, so that values keep a natural size from layer to layer and errors can be compared. The little
W-Net has its published weights and real images of eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.medical.cohort import load_cohort
from microtome.types import Array
from networks import ScoresOnly

STATISTICS = 4  # images whose statistics the batch norms of random networks get
CLASSES_2D, CLASSES_3D = 2, 3


@dataclass(frozen=True)
class Subject:
    """A network of the suite, its input shape (C, *S), and what it is."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module] | None  # None: a reference network of references.py
    note: str


def unet_2d() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 3, CLASSES_2D, (32, 64, 128, 256, 512), (2, 2, 2, 2), norm="batch")


def densenet121() -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(2, 3, CLASSES_2D)


def resnet50() -> nn.Module:
    from monai.networks.nets import resnet50 as monai_resnet50

    return monai_resnet50(spatial_dims=2, n_input_channels=3, num_classes=CLASSES_2D)


def efficientnet_b0() -> nn.Module:
    from monai.networks.nets import EfficientNetBN

    network = EfficientNetBN("efficientnet-b0", pretrained=False, num_classes=CLASSES_2D)
    network.set_swish(memory_efficient=False)
    return network


def vit_s16() -> nn.Module:
    from monai.networks.nets import ViT

    options = {"classification": True, "num_classes": CLASSES_2D, "spatial_dims": 2, "post_activation": None}
    return ScoresOnly(ViT(3, 224, 16, 384, 1536, 12, 6, qkv_bias=True, **options))


def unet_3d() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 4, CLASSES_3D, (32, 64, 128, 256), (2, 2, 2), num_res_units=2, norm="instance")


def dynunet() -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = (1, 2, 2, 2, 2)
    return DynUNet(3, 1, CLASSES_3D, [3] * 5, strides, strides[1:], filters=(32, 64, 128, 256, 320))


def segresnet() -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(3, 16, 4, CLASSES_3D)


def swin_unetr() -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(1, CLASSES_3D, feature_size=24)


SUITE = {
    s.name: s
    for s in (
        Subject("unet_2d", (3, 256, 256), unet_2d, "U-Net 2-D, 32 to 512, batch norm, PReLU"),
        Subject("densenet121", (3, 224, 224), densenet121, "DenseNet121"),
        Subject("resnet50", (3, 224, 224), resnet50, "ResNet50 (MONAI)"),
        Subject("efficientnet_b0", (3, 224, 224), efficientnet_b0, "EfficientNet-B0"),
        Subject("vit_s16", (3, 224, 224), vit_s16, "ViT-S/16"),
        Subject("unet_3d", (4, 96, 96, 96), unet_3d, "U-Net 3-D, residual, instance norm, PReLU"),
        Subject("dynunet", (1, 96, 96, 96), dynunet, "DynUNet (nnU-Net), instance norm"),
        Subject("segresnet", (4, 96, 96, 96), segresnet, "SegResNet, group norm"),
        Subject("wnet", (3, 512, 512), None, "little W-Net, published weights, real images"),
        Subject("swin_unetr", (1, 96, 96, 96), swin_unetr, "SwinUNETR (feature size 24)"),
    )
}


@dataclass(frozen=True)
class Prepared:
    """A network of the suite, ready to be measured.

    Attributes:
        network: captured, in evaluation mode.
        module: what it was captured from; None for one that is read from a file.
        calibration: images to calibrate on, float32 (1, C, *S) each.
        held_out: images of others, to measure errors on.
    """

    subject: Subject
    network: Network
    module: nn.Module | None
    calibration: tuple[Array, ...]
    held_out: tuple[Array, ...]


def prepare(name: str, *, calibration: int = 8, held_out: int = 2, data: Path | None = None) -> Prepared:
    """Make a network of the suite, and images for it."""
    subject = SUITE[name]
    if subject.build is None:
        return _retina(subject, calibration, held_out)
    torch.manual_seed(0)
    module = subject.build()
    images = tuple(phantoms(subject.shape, calibration + held_out, seed=0))
    _set_statistics(module, images[:STATISTICS])
    module.eval()
    network = capture(module, subject.shape)
    return Prepared(subject, network, module, images[:calibration], images[calibration:])


def phantoms(shape: tuple[int, ...], count: int, *, seed: int) -> Iterator[Array]:
    """Yield images (1, *shape) with smooth structures, edges and noise, each channel with mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = gaussian_filter(rng.standard_normal(shape), (0, *[8] * (len(shape) - 1)))
        coarse /= coarse.std()
        fine = gaussian_filter(rng.standard_normal(shape), (0, *[1] * (len(shape) - 1)))
        image = coarse + 2.0 * (coarse > 0.5) + 0.3 * fine / fine.std()
        axes = tuple(range(1, len(shape)))
        image -= image.mean(axes, keepdims=True)
        yield (image / image.std(axes, keepdims=True)).astype(np.float32)[None]


def _set_statistics(module: nn.Module, images: tuple[Array, ...]) -> None:
    """Give batch norms the statistics of the values that reach them."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative
    module.train()
    with torch.no_grad():
        module(torch.from_numpy(np.concatenate(images)))
    for norm in norms:
        norm.momentum = 0.1


def _retina(subject: Subject, calibration: int, held_out: int) -> Prepared:
    from accuracy import reference
    from microtome.medical.pipeline import Pipeline
    from microtome.medical.prepare import prepare as prepare_image

    path = reference("retina")
    cohort = load_cohort(path.with_name("manifest.csv"), seed=0, tuning=0.0)
    pipeline = Pipeline.from_json(path.with_name("pipeline.json").read_text())

    def images(cases: tuple, count: int) -> tuple[Array, ...]:
        return tuple(prepare_image(cohort.image(case), pipeline).array[None] for case in cases[:count])

    found = images(cohort.train, calibration), images(cohort.evaluation, held_out)
    return Prepared(subject, pt2.load(path), None, *found)
