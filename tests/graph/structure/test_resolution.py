import pytest
import torch
from torch import nn
from torch.nn import functional as F

from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.graph.structure.resolution import at_resolution
from microtome.graph.watching.macs import layer_sizes
from networks import captured, images, randomize


@pytest.mark.parametrize("name", ["unet2d", "residual3d"])
def test_it_computes_on_a_smaller_image_and_answers_at_full_size(name: str):
    network = captured(name)
    small = at_resolution(network, 0.5)
    x = torch.cat(images(network.shape, 2))
    mode = "bilinear" if network.spatial_dims == 2 else "trilinear"
    seen = F.interpolate(x, scale_factor=0.5, mode=mode, align_corners=False)
    expected = F.interpolate(network(seen), scale_factor=2, mode=mode, align_corners=False)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-4)
    macs = [sum(size.macs for size in layer_sizes(one)) for one in (network, small)]
    assert macs[1] * 2**network.spatial_dims == macs[0]
    assert small.inputs == network.inputs
    assert small.outputs == network.outputs


def test_scores_of_classes_stay_as_they_are():
    network = captured("dense2d")
    x = images(network.shape)[0]
    seen = F.interpolate(x, scale_factor=0.75, mode="bilinear", align_corners=False)
    torch.testing.assert_close(at_resolution(network, 0.75)(x), network(seen), rtol=1e-4, atol=1e-4)


def test_the_whole_resolution_is_the_network_itself():
    network = captured("unet2d")
    assert at_resolution(network, 1.0) is network


class Tokens(nn.Module):
    """A layer over all pixels of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.reshape(x.shape[0], 64))


def test_a_network_of_one_size_is_refused():
    network = capture(randomize(Tokens()), (1, 8, 8))
    with pytest.raises(OptionError, match=r"does not run at 0\.5 of its resolution"):
        at_resolution(network, 0.5)


class Windows(nn.Module):
    """Windows that hold two smaller images where they held half of one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.enter(x).reshape(-1, 32, 4)
        tokens = tokens + tokens.mean(1, keepdim=True)
        return self.leave(tokens.reshape(x.shape[0], -1, 4).mean(1))


def test_a_network_that_would_mix_images_is_refused():
    network = capture(randomize(Windows()), (1, 8, 8))
    with pytest.raises(OptionError, match="mixes the images of a batch"):
        at_resolution(network, 0.5)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.5, float("nan")])
def test_other_scales_are_refused(scale: float):
    with pytest.raises(OptionError, match=r"a share from 0\.5 to 1"):
        at_resolution(captured("unet2d"), scale)


def test_strides_that_do_not_divide_are_refused():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 2, 2, stride=2), nn.ConvTranspose2d(2, 2, 2, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.up(self.down(x))

    network = capture(randomize(Skip()), (1, 8, 8))
    assert at_resolution(network, 0.5)(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)
    with pytest.raises(OptionError, match=r"does not run at 0\.6 of its resolution"):
        at_resolution(network, 0.6)
