import pytest
import torch
from torch import nn

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.structure.kernels import large_kernels, without_borders
from microtome.graph.watching.macs import layer_sizes
from networks import captured, images, randomize


class Kernels(nn.Module):
    """Kernels that can lose their border, and such that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 5, padding=2, stride=2)
        self.far = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3)
        self.flat = nn.Conv2d(6, 6, (1, 3), padding="same")
        self.valid = nn.Conv2d(6, 6, 3)
        self.point = nn.Conv2d(6, 6, 1)
        self.up = nn.ConvTranspose2d(6, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.point(self.valid(self.flat(self.far(self.wide(x))))))


def kernels() -> Network:
    return capture(randomize(Kernels()), (3, 16, 16))


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {size.name: size.weight[2:] for size in layer_sizes(network)}


def test_large_kernels_are_named_where_the_output_keeps_its_size():
    assert large_kernels(kernels()) == ("wide", "far", "flat")
    assert large_kernels(captured("transformer")) == ()
    assert large_kernels(captured("tied2d")) == ()  # two layers, one weight


def test_the_taps_in_the_middle_are_left():
    network = kernels()
    bare = without_borders(network, ["wide", "far", "flat", "valid"])
    expected = {"wide": (3, 3), "far": (1, 1), "flat": (1, 1), "valid": (3, 3), "point": (1, 1), "up": (3, 3)}
    assert shapes(bare) == expected
    assert shapes(network)["wide"] == (5, 5)
    # the same as with zeros at the border
    zeroed = network.copy()
    with torch.no_grad():
        for name in ("wide", "far"):
            weight = zeroed.tensor(f"{name}.weight")
            weight[..., 0, :] = weight[..., -1, :] = 0
            weight[..., 0] = weight[..., -1] = 0
        flat = zeroed.tensor("flat.weight")
        flat[..., 0] = flat[..., -1] = 0
    x = images(network.shape)[0]
    torch.testing.assert_close(bare(x), zeroed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["unet2d", "residual3d", "dense2d"])
def test_outputs_keep_their_size(name: str):
    network = captured(name)
    bare = without_borders(network, large_kernels(network))
    x = images(network.shape)[0]
    assert bare(x).shape == network(x).shape
    assert bare.parameters < network.parameters
    assert [layer.name for layer in bare.layers] == [layer.name for layer in network.layers]
