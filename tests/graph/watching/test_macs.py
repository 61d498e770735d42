from torch import nn

from microtome.graph.capture import capture
from microtome.graph.watching.macs import layer_sizes
from networks import captured


def macs(layer: nn.Module, shape: tuple[int, ...]) -> int:
    return layer_sizes(capture(layer, shape))[0].macs


def test_by_hand():
    assert macs(nn.Conv2d(3, 8, 3, padding=1), (3, 8, 6)) == 8 * 6 * 8 * 3 * 9
    assert macs(nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8)) == 6 * 6 * 8 * 9
    assert macs(nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 4, 4)) == 4 * 4 * 3 * 5 * 4
    assert macs(nn.Linear(8, 5), (3, 8)) == 3 * 8 * 5


def test_layers_are_in_order():
    network = captured("unet2d")
    sizes = layer_sizes(network)
    assert [size.name for size in sizes] == [layer.name for layer in network.layers]
    assert [size.weights for size in sizes] == [16 * 3 * 9, 32 * 16 * 9, 32 * 16 * 4, 16 * 32 * 9, 2 * 16]
    assert sizes[0].output == (1, 16, 16, 16)
