import pytest
import torch
from torch import Tensor, nn

from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.program import export_graph, network_from_export
from microtome.graph.rewriting.window_masks import window_masks
from microtome.types import Port
from networks import randomize

HEADS, WIDTH, SIDE, SHIFT = 2, 8, 4, 2


class ShiftedWindows(nn.Module):
    """Attention in windows of 4×4, shifted by 2, as Swin transformers write it."""

    def __init__(self, *, mask_first: bool = False) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(2, WIDTH, 1), nn.Linear(WIDTH, 3 * WIDTH), nn.Conv2d(WIDTH, 3, 1)
        self.bias = nn.Parameter(torch.zeros(HEADS, SIDE**2, SIDE**2))
        self.register_buffer("mask", torch.randint(0, 2, (4, SIDE**2, SIDE**2)) * -100.0)
        self.mask_first = mask_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).roll((-SHIFT, -SHIFT), (2, 3))
        n = x.shape[0]
        windows = x.view(n, WIDTH, 2, SIDE, 2, SIDE).permute(0, 2, 4, 3, 5, 1).reshape(-1, SIDE**2, WIDTH)
        q, k, v = self.qkv(windows).reshape(-1, SIDE**2, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) + self.bias
        split, mask = scores.view(n, 4, HEADS, SIDE**2, SIDE**2), self.mask[None, :, None]
        scores = (mask + split if self.mask_first else split + mask).view(-1, HEADS, SIDE**2, SIDE**2)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, 2, 2, SIDE, SIDE, WIDTH)
        return self.head(x.permute(0, 5, 1, 3, 2, 4).reshape(n, WIDTH, 2 * SIDE, 2 * SIDE))


def captured(module: nn.Module) -> Network:
    """Capture for any batch of images of one size: the number of windows is fixed."""
    port = Port("input", (2, 8, 8), (True, False, False, False))
    return network_from_export(export_graph(randomize(module), [port]))


@pytest.mark.parametrize("mask_first", [False, True])
def test_computes_the_same_without_the_reshapes(mask_first: bool):
    network = captured(ShiftedWindows(mask_first=mask_first))
    rewritten = window_masks(network)

    def reshapes(network) -> int:
        return sum(kind(node) == "reshape" for node in network.graph_module.graph.nodes)

    assert reshapes(rewritten) == reshapes(network) - 2
    for batch in (1, 3):  # the mask is that of one image
        x = torch.randn(batch, 2, 8, 8)
        torch.testing.assert_close(rewritten(x), network(x))


class ScoresReadTwice(ShiftedWindows):
    """The sum in five axes has another reader, so that it must stay."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.stem(x).reshape(-1, 2, 4, 64)
        summed = scores.view(-1, 1, 2, 4, 64) + self.mask.reshape(1, 1, 1, 4, -1)[..., :64]
        return self.head(summed.view(-1, 2, 4, 64).reshape(-1, WIDTH, 8, 8) + summed.reshape(-1, WIDTH, 8, 8))


def test_leaves_other_sums_between_reshapes_alone():
    network = captured(ScoresReadTwice())
    assert window_masks(network) is network


def test_does_not_change_its_argument():
    network = captured(ShiftedWindows())
    before = network.fingerprint()
    window_masks(network)
    assert network.fingerprint() == before
