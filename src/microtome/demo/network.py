"""The demo's network: a small 2-D U-Net with weights that `benchmarks/train_demo.py` trained on phantoms."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor, nn

from microtome.demo.phantom import CLASSES
from microtome.errors import WeightsError
from microtome.medical.pipeline import Pipeline

WEIGHTS = "unet.safetensors"  # beside this file; float16, to stay below 1 MB
WIDTHS = (16, 32, 64, 96)
SIZE = 192  # pixels, of the slices it was trained on


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution 3×3, batch normalization, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3×3 convolutions around which the input is carried past, then ReLU (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        self.first = block(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        result: Tensor = torch.relu(x + self.second(self.first(x)))
        return result


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with batch normalization and one residual block: 0.43 million parameters.

    Input (N, 1, H, W) with H and W multiples of 8; output logits (N, 4, H, W), in the order of `phantom.CLASSES`.
    """

    def __init__(self) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        a, b, c, d = WIDTHS
        self.down1 = nn.Sequential(block(1, a), block(a, a))
        self.down2 = nn.Sequential(block(a, b), block(b, b))
        self.down3 = nn.Sequential(block(b, c), Residual(c))
        self.bottom = nn.Sequential(block(c, d), block(d, d))
        self.grow3 = nn.ConvTranspose2d(d, c, 2, stride=2)
        self.grow2 = nn.ConvTranspose2d(c, b, 2, stride=2)
        self.grow1 = nn.ConvTranspose2d(b, a, 2, stride=2)
        self.up3 = nn.Sequential(block(2 * c, c), block(c, c))
        self.up2 = nn.Sequential(block(2 * b, b), block(b, b))
        self.up1 = nn.Sequential(block(2 * a, a), block(a, a))
        self.head = nn.Conv2d(a, len(CLASSES), 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → logits (N, 4, H, W)."""
        skip1 = self.down1(x)
        skip2 = self.down2(self.pool(skip1))
        skip3 = self.down3(self.pool(skip2))
        x = self.bottom(self.pool(skip3))
        x = self.up3(torch.cat((skip3, self.grow3(x)), dim=1))
        x = self.up2(torch.cat((skip2, self.grow2(x)), dim=1))
        x = self.up1(torch.cat((skip1, self.grow1(x)), dim=1))
        logits: Tensor = self.head(x)
        return logits


def demo_network() -> nn.Module:
    """Return the U-Net with its shipped weights, float32, in evaluation mode.

    Raises:
        WeightsError: the weights are missing from the installation, damaged, or of another network.
    """
    from safetensors.torch import load

    network = UNet()
    try:
        state = load(resources.files("microtome.demo").joinpath(WEIGHTS).read_bytes())
        network.load_state_dict(state, strict=True)  # copies, and turns float16 into float32
    except Exception as error:  # safetensors raises an exception class of its own, torch a RuntimeError
        raise WeightsError(
            f"The weights of the demo network cannot be read ({WEIGHTS}).", "Install microtome again."
        ) from error
    return network.eval()


def pipeline() -> Pipeline:
    """What the demo network needs before and after it: gray slices of 192×192, zero mean and unit deviation."""
    return Pipeline(task="segmentation", classes=CLASSES, grayscale=True, size=(SIZE, SIZE), normalize="zscore")
