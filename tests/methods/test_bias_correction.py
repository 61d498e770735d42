from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from microtome.core.affine import fake_quantize
from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.network import Layer, Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.graph.watching.distribution import mean_is_removed
from microtome.graph.watching.observe import Observed, Unquantized
from microtome.methods.base import Context
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, randomize, told

COARSE = Quantize(weight_bits=4, activation_bits=4)
# The corrected mean is that of float32 sums in another order: 2^-24 of the activations, which are of size 1 to 10.
ROUNDING = 1e-5


def quantized(network: Network, batches: list[Tensor]) -> Network:
    return COARSE.run(FoldBatchNorm().run(network), told(batches))


def shift(network: Network, reference: Network, batches: list[Tensor]) -> Tensor:
    """Return the mean difference per output channel."""
    x = torch.cat(batches)
    return (network(x) - reference(x)).detach().movedim(1, 0).flatten(1).mean(1)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)),
        (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 8, 8)),
        (nn.Conv3d(2, 4, 3), (2, 6, 6, 6)),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), (4, 8, 8)),
        (nn.Linear(8, 5), (3, 8, 8)),
        (nn.Linear(8, 5, bias=False), (3, 8, 8)),
    ],
    ids=["conv", "depthwise", "conv3d", "transpose", "grouped-transpose", "linear", "linear-no-bias"],
)
def test_one_layer_loses_its_mean_shift_on_the_calibration_images(layer: nn.Module, shape: tuple[int, ...]):
    network, batches = capture(randomize(layer), shape), images(shape)
    coarse = quantized(network, batches)
    corrected = CorrectBias().run(coarse, Context(batches))
    x = torch.cat(batches)
    axis = -1 if isinstance(layer, nn.Linear) else 1

    def means(candidate: Network) -> Tensor:
        return (candidate(x) - network(x)).detach().movedim(axis, 0).flatten(1).mean(1).abs()

    assert float(means(coarse).max()) > 100 * ROUNDING
    assert float(means(corrected).max()) <= ROUNDING


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "dense2d", "transformer", "residual3d"])
def test_each_layer_is_given_the_mean_of_its_own_error(name: str):
    network = captured(name)
    batches = images(network.shape)
    coarse = quantized(network, batches)
    corrected = CorrectBias().run(coarse, Context(batches))
    x, expected = torch.cat(batches), {}

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        layer = next(layer for layer in coarse.layers if layer.node is node)
        grid, weight = input_quantizer(coarse, layer), coarse.tensor(str(layer.weight.target))
        inputs = arguments[0] if grid is None else fake_quantize(arguments[0], grid)
        rounded = fake_quantize(weight, weight_quantizer(coarse, layer))
        lost = value - node.target(inputs, rounded, *arguments[2:])
        axis = -1 if layer.op == "linear" else 1
        expected[layer.name] = lost.movedim(axis, 0).flatten(1).mean(1)

    kept = [layer.node for layer in coarse.layers if not mean_is_removed(layer.node)]
    Unquantized(coarse, kept, look)(x)
    assert len(expected) == len(kept) > 0
    pairs = zip(coarse.layers, corrected.layers, strict=True)
    moved = {before.name: bias_of(corrected, after) - bias_of(coarse, before) for before, after in pairs}
    for layer, lost in expected.items():
        torch.testing.assert_close(moved[layer], lost, rtol=0, atol=ROUNDING)


def bias_of(network: Network, layer: Layer) -> Tensor | float:
    source = constant_source(layer.node.args[2]) if len(layer.node.args) > 2 else None
    return network.tensor(str(source.target)) if source is not None else 0.0


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "dense2d", "transformer"])
def test_whole_networks_shift_less(name: str):
    network = captured(name)
    batches = images(network.shape)
    coarse = quantized(network, batches)
    before = shift(coarse, network, batches).norm()
    after = shift(CorrectBias().run(coarse, Context(batches)), network, batches).norm()
    assert float(after) < 0.7 * float(before)  # each layer is corrected for its own error only: less, but not nothing


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "dense2d", "transformer"])
def test_in_sequence_the_output_keeps_its_mean(name: str):
    network = captured(name)
    batches = images(network.shape)
    coarse = quantized(network, batches)
    before = shift(coarse, network, batches).norm()
    after = shift(CorrectBias(sequential=True).run(coarse, Context(batches)), network, batches).norm()
    assert float(after) < 1e-3 * float(before)  # the last layer gives back all that is left


def test_in_sequence_every_layer_keeps_its_mean():
    network = captured("unet2d")
    batches = images(network.shape)
    coarse = CorrectBias(sequential=True).run(quantized(network, batches), Context(batches))
    reference = FoldBatchNorm().run(network)
    means: list[list[Tensor]] = [[], []]
    for candidate, found in zip((coarse, reference), means, strict=True):
        nodes = [layer.node for layer in candidate.layers]
        Observed(candidate, nodes, lambda _, value, found=found: found.append(value.mean((0, 2, 3))))(
            torch.cat(batches)
        )
    for actual, expected in zip(*means, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("sequential", [False, True])
def test_layers_before_an_instance_norm_are_left_alone(sequential: bool):
    network = captured("residual3d")
    batches = images(network.shape)
    coarse = quantized(network, batches)
    corrected = CorrectBias(sequential=sequential).run(coarse, Context(batches))
    changed = {
        name for name, tensor in coarse.constants().items() if not torch.equal(tensor, corrected.constants()[name])
    }
    assert changed == {"enter.bias", "leave.bias"}


def test_weights_and_grids_stay():
    network = captured("unet2d")
    batches = images(network.shape)
    coarse = quantized(network, batches)
    corrected = CorrectBias().run(coarse, Context(batches))
    others = {name: tensor for name, tensor in coarse.constants().items() if not name.endswith("bias")}
    assert any(name.endswith("weight") for name in others)
    for name, tensor in others.items():
        assert torch.equal(tensor, corrected.constants()[name])


def test_a_shared_bias_is_parted():
    network = captured("shared2d")
    batches = images(network.shape)
    corrected = CorrectBias().run(COARSE.run(network, told(batches)), Context(batches))
    _, one, other = corrected.layers
    assert one.node.args[2].target != other.node.args[2].target


def test_layers_in_float_are_left_alone():
    network = captured("unet2d")
    batches = images(network.shape)
    names = frozenset(layer.name for layer in network.layers) - {"up"}
    partly = Quantize(skip=names).run(FoldBatchNorm().run(network), told(batches))
    corrected = CorrectBias().run(partly, Context(batches))
    changed = {n for n, t in partly.constants().items() if not torch.equal(t, corrected.constants()[n])}
    assert changed == {"up.bias"}


@pytest.mark.parametrize("sequential", [False, True])
def test_no_calibration_images_are_refused(sequential: bool):
    network = captured("unet2d")
    with pytest.raises(DataError, match="no calibration images"):
        CorrectBias(sequential=sequential).run(quantized(network, images(network.shape)))
