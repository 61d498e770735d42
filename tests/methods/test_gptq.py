import math

import pytest
import torch
from torch import Tensor, nn

from microtome.core.affine import fake_quantize
from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.quantizers import weight_quantizer
from microtome.methods import gptq
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.gptq import Gptq
from microtome.methods.quantize import Quantize
from networks import captured, images, randomize, sqnr_db, told

LAYERS = {
    "conv": (nn.Conv2d(6, 8, 3, padding=1), (6, 8, 8)),
    "grouped": (nn.Conv2d(8, 8, 3, groups=2, bias=False), (8, 8, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8)),
    "conv3d": (nn.Conv3d(4, 4, 3), (4, 6, 6, 6)),
    "transposed": (nn.ConvTranspose2d(6, 5, 3, stride=2), (6, 8, 8)),
    "grouped-transposed": (nn.ConvTranspose2d(8, 6, 2, groups=2, bias=False), (8, 8, 8)),
    "linear": (nn.Linear(16, 5), (3, 8, 16)),
}


def mixed(network: Network, count: int = 3) -> list[Tensor]:
    """Return images whose channels are correlated, as those inside of a network are."""
    generator = torch.Generator().manual_seed(5)
    channels = network.shape[0]
    mix = torch.randn((channels, channels), generator=generator) / math.sqrt(channels)
    return [torch.einsum("nc...,cd->nd...", x, mix) + 0.5 for x in images(network.shape, count)]


def weights_only(network: Network, bits: int) -> Network:
    folded = FoldBatchNorm().run(network)
    return Quantize(weight_bits=bits, activation_bits=None).run(folded, told(images(network.shape)))


def error(network: Network, reference: Network, batches: list[Tensor]) -> float:
    x = torch.cat(batches)
    return float((network(x) - reference(x)).detach().square().mean())


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_output_changes_less_than_by_rounding_to_the_nearest(name: str, bits: int):
    network = capture(randomize(nn.Sequential(LAYERS[name][0])), LAYERS[name][1])
    batches = mixed(network)
    coarse = weights_only(network, bits)
    for settings in ({}, {"move_bias": False}, {"order": "natural"}, {"widest": 20}):
        rounded = Gptq(**settings).run(coarse, Context(batches))
        assert error(rounded, network, batches) < 0.95 * error(coarse, network, batches)


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "residual3d", "dense2d", "transformer"])
def test_whole_networks_lose_less(name: str):
    network = captured(name)
    batches = images(network.shape)
    folded = FoldBatchNorm().run(network)
    coarse = Quantize(weight_bits=3, activation_bits=8).run(folded, told(batches))
    expected = network(torch.cat(batches))
    before = sqnr_db(expected, coarse(torch.cat(batches)))
    for sequential in (False, True):
        after = sqnr_db(expected, Gptq(sequential=sequential).run(coarse, Context(batches))(torch.cat(batches)))
        assert after > before + 1


def test_weights_lie_on_their_grids():
    network = captured("unet2d")
    rounded = Gptq().run(weights_only(network, 4), Context(images(network.shape)))
    for layer in rounded.layers:
        weight = rounded.tensor(str(layer.weight.target))
        assert torch.equal(fake_quantize(weight, weight_quantizer(rounded, layer)), weight)


def test_grids_stay():
    network = captured("unet2d")
    coarse = weights_only(network, 4)
    rounded = Gptq().run(coarse, Context(images(network.shape)))
    for layer, other in zip(coarse.layers, rounded.layers, strict=True):
        assert torch.equal(weight_quantizer(coarse, layer).scale, weight_quantizer(rounded, other).scale)


def test_a_pointwise_convolution_is_a_linear_layer():
    conv, linear = nn.Conv2d(6, 4, 1), nn.Linear(6, 4)
    randomize(conv)
    linear.weight.data, linear.bias.data = conv.weight.data.flatten(1), conv.bias.data
    batches = mixed(capture(conv, (6, 4, 4)))
    one = Gptq().run(weights_only(capture(conv, (6, 4, 4)), 3), Context(batches))
    channels_last = [x.movedim(1, -1).contiguous() for x in batches]
    other = Gptq().run(weights_only(capture(linear, (4, 4, 6)), 3), Context(channels_last))
    weights = [n.tensor(str(n.layers[0].weight.target)).flatten(1) for n in (one, other)]
    assert torch.equal(*weights)


def test_the_bias_takes_up_the_mean():
    network = capture(randomize(nn.Conv2d(6, 8, 3, bias=False)), (6, 8, 8))
    batches = mixed(network)
    rounded = Gptq().run(weights_only(network, 3), Context(batches))
    shift = (rounded(torch.cat(batches)) - network(torch.cat(batches))).detach().mean((0, 2, 3))
    assert float(shift.abs().max()) < 1e-5  # sums of float32 in another order
    left = Gptq(move_bias=False).run(weights_only(network, 3), Context(batches))
    assert len(left.layers[0].node.args) == len(network.layers[0].node.args)


def test_layers_with_one_weight_keep_one_weight():
    network = captured("shared2d")
    batches = images(network.shape)
    rounded = Gptq().run(Quantize(weight_bits=3).run(network, told(batches)), Context(batches))
    _, one, other = rounded.layers
    assert one.weight.target == other.weight.target


def test_one_weight_on_two_grids_is_parted():
    network = captured("shared2d")
    batches = images(network.shape)
    _, one, other = network.layers
    coarse = Quantize(layer_bits={one.name: (3, 8), other.name: (4, 8)}).run(network, told(batches))
    rounded = Gptq().run(coarse, Context(batches))
    _, one, other = rounded.layers
    for layer in (one, other):
        weight = rounded.tensor(str(layer.weight.target))
        assert torch.equal(fake_quantize(weight, weight_quantizer(rounded, layer)), weight)
    assert one.weight.target != other.weight.target


def test_layers_in_float_stay():
    network = FoldBatchNorm().run(captured("unet2d"))
    batches = images(network.shape)
    names = frozenset(layer.name for layer in network.layers) - {"up"}
    coarse = Quantize(skip=names, weight_bits=4).run(network, told(batches))
    rounded = Gptq().run(coarse, Context(batches))
    changed = {n for n, t in coarse.constants().items() if not torch.equal(t, rounded.constants()[n])}
    assert changed == {"up.weight", "up.bias"}


def test_positions_are_drawn():
    network = captured("unet2d")
    coarse = weights_only(network, 4)
    few = [
        Gptq(positions=50, seed=seed).run(coarse, Context(images(network.shape))).fingerprint() for seed in (0, 0, 1)
    ]
    assert few[0] == few[1] != few[2]


def test_what_does_not_fit_into_memory_waits_for_another_pass(monkeypatch: pytest.MonkeyPatch):
    network = captured("unet2d")
    coarse, batches = weights_only(network, 4), images(network.shape)
    at_once, one_by_one = Gptq().run(coarse, Context(batches)), Gptq(sequential=True).run(coarse, Context(batches))
    assert at_once.fingerprint() != one_by_one.fingerprint()
    monkeypatch.setattr(gptq, "MOST_BYTES", 1)
    assert Gptq().run(coarse, Context(batches)).fingerprint() == one_by_one.fingerprint()


def test_what_makes_no_sense_is_refused():
    network = captured("unet2d")
    coarse = weights_only(network, 4)
    with pytest.raises(OptionError, match="no order 'size'"):
        Gptq(order="size").run(coarse, Context(images(network.shape)))
    with pytest.raises(OptionError, match="damping of at least 0"):
        Gptq(damping=-1).run(coarse, Context(images(network.shape)))
    with pytest.raises(DataError, match="no calibration images"):
        Gptq().run(coarse)
    with pytest.raises(DataError, match="NaN or infinite"):
        Gptq().run(coarse, Context([x * float("nan") for x in images(network.shape)]))
