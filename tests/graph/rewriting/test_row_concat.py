import pytest
import torch
from torch import Tensor, nn

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import aten, kind
from microtome.graph.rewriting.row_concat import planar_concats
from microtome.methods.quantize import Quantize
from networks import images, randomize, told


class Cascade(nn.Module):
    """A map of one value per pixel, and a second look at the image beside it."""

    def __init__(self, maps: int = 1, *, channels: int = 3, solid: bool = False) -> None:
        super().__init__()
        conv = nn.Conv3d if solid else nn.Conv2d
        self.first, self.second = conv(channels, maps, 3, padding=1), conv(channels + maps, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.cat([x, self.first(x).sigmoid()], 1))


def by_rows(network: Network) -> list[bool]:
    """Return of each concatenation whether all that it joins is flattened."""
    flattened = aten.flatten.using_ints
    nodes = network.graph_module.graph.nodes
    return [all(part.target is flattened for part in n.args[0]) for n in nodes if kind(n) == "concat"]


@pytest.mark.parametrize("solid", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_computes_the_same_by_rows_at_any_size(solid: bool, quantized: bool):
    shape = (3, 8, 8, 8) if solid else (3, 8, 8)
    network = capture(randomize(Cascade(solid=solid)), shape)
    if quantized:
        network = Quantize().run(network, told(images(shape)))
    rewritten = planar_concats(network)
    assert by_rows(network) == [False]
    assert by_rows(rewritten) == [True]
    for size in (shape, (3, *[11, 9, 10][: len(shape) - 1])):
        x = torch.randn(2, *size)
        assert torch.equal(rewritten(x), network(x))


@pytest.mark.parametrize("module", [Cascade(2), Cascade(1, channels=16)], ids=["two maps", "many channels"])
def test_what_lies_otherwise_stays(module: Cascade):
    network = capture(module, (module.first.in_channels, 8, 8))
    assert planar_concats(network) is network
