from dataclasses import replace

import pytest
import torch
from torch import nn

from microtome.core.formats import (
    AdditivePowerOfTwo,
    Affine,
    Binary,
    Codebook,
    Format,
    Logarithmic,
    MidRise,
    Minifloat,
    PowerOfTwo,
    Ternary,
)
from microtome.errors import OptionError, WeightsError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import output_axis
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.methods.base import Context
from microtome.methods.encode import EncodeWeights
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import Capabilities, OperatorSupport
from networks import REAL, UNSIGNED, captured, images, randomize, sqnr_db, told

WITH_INTEGERS = (
    PowerOfTwo(4),
    AdditivePowerOfTwo(6),
    Codebook(4, integer=True),
    Ternary(),
    Binary(),
    Affine(3),
    Logarithmic(3),
    MidRise(),
)
WITHOUT = (PowerOfTwo(5), Codebook(4), Ternary(two_scales=True), Affine(4, group=8), Minifloat("e4m3fn", scaled=True))


def quantized(name: str, **settings: object) -> Network:
    network = FoldBatchNorm().run(captured(name))
    return Quantize(search_weights=False, **settings).run(network, told(images(network.shape)))


def shared() -> Network:
    """Return a quantized network of which two layers read one weight."""
    network = captured("shared2d")
    return Quantize(search_weights=False).run(network, told(images(network.shape)))


def encoded(name: str, number_format: Format, **settings: object) -> tuple[Network, Network]:
    before = quantized(name)
    return before, EncodeWeights(number_format, **settings).run(before, told())


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("number_format", WITH_INTEGERS, ids=repr)
def test_integers_lie_in_8_bits(number_format: Format, name: str, activation_bits: int | None):
    before = quantized(name, activation_bits=activation_bits)
    after = EncodeWeights(number_format).run(before, told())
    for old, new in zip(before.layers, after.layers, strict=True):
        axis = output_axis(old.node)
        expected = number_format.encode(before.tensor(str(old.weight.target)), axis).decode()
        grid = weight_quantizer(after, new)
        assert (grid.qtype.qmin, grid.qtype.qmax, grid.qtype.axis) == (-127, 127, axis)
        assert not bool(grid.zero_point.any())
        weight = after.tensor(str(new.weight.target))
        assert torch.equal(weight, expected)
        args = (grid.scale, grid.zero_point, axis, -127, 127)
        assert torch.equal(torch.fake_quantize_per_channel_affine(weight, *args), expected)
        assert (input_quantizer(after, new) is None) == (activation_bits is None)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("number_format", WITHOUT, ids=repr)
def test_what_is_no_integer_is_float(number_format: Format, name: str):
    before, after = encoded(name, number_format)
    for old, new in zip(before.layers, after.layers, strict=True):
        expected = number_format.encode(before.tensor(str(old.weight.target)), output_axis(old.node)).decode()
        assert weight_quantizer(after, new) is None
        assert torch.equal(after.tensor(str(new.weight.target)), expected)
    assert not [name for name in after.constants() if name.endswith(("_scale", "_zero_point"))]


@pytest.mark.parametrize("number_format", [*WITH_INTEGERS, *WITHOUT], ids=repr)
def test_the_encodings_give_the_weights(number_format: Format):
    _, after = encoded("unet2d", number_format)
    assert set(after.formats) == {str(layer.weight.target) for layer in after.layers}
    for name, encoding in after.formats.items():
        assert encoding.format == number_format
        assert torch.equal(encoding.encode(after.tensor(name)).decode(), after.tensor(name))


def test_the_graph_computes_with_them():
    network = FoldBatchNorm().run(captured("unet2d"))
    x = torch.cat(images(network.shape))
    found = []
    for number_format in (Binary(), Ternary(), MidRise(), PowerOfTwo(3), AdditivePowerOfTwo(4), AdditivePowerOfTwo(6)):
        found.append(sqnr_db(network(x), encoded("unet2d", number_format)[1](x)))
    assert found == sorted(found)
    assert found[-1] > found[0] + 10


def test_each_layer_its_format():
    before, after = encoded("unet2d", Ternary(), skip=frozenset({"enter.0"}), layer_formats={"up": Codebook(5)})
    names = {layer.name: str(layer.weight.target) for layer in after.layers}
    assert names["enter.0"] not in after.formats
    assert after.formats[names["up"]].format == Codebook(5)
    assert after.formats[names["down.0"]].format == Ternary()
    grids = [weight_quantizer(n, next(la for la in n.layers if la.name == "enter.0")) for n in (before, after)]
    assert torch.equal(grids[0].scale, grids[1].scale)


def test_layers_in_float_stay():
    before = quantized("unet2d", skip=frozenset({"up"}))
    after = EncodeWeights(Binary()).run(before, told())
    assert "up.weight" not in after.formats
    assert torch.equal(after.tensor("up.weight"), before.tensor("up.weight"))


@pytest.mark.parametrize("number_format", [Ternary(), Codebook(3)], ids=repr)
def test_layers_with_one_weight_keep_one_weight(number_format: Format):
    after = EncodeWeights(number_format).run(shared(), told())
    _, one, other = after.layers
    assert one.weight.target == other.weight.target
    assert len(after.formats) == 2


def test_one_weight_in_two_formats_is_parted():
    before = shared()
    _, one, other = before.layers
    settings = {"layer_formats": {one.name: Binary(), other.name: Minifloat("e5m2")}}
    after = EncodeWeights(Ternary(), **settings).run(before, told())
    _, one, other = after.layers
    weight = before.tensor(str(before.layers[1].weight.target))
    assert one.weight.target != other.weight.target
    assert torch.equal(after.tensor(str(one.weight.target)), Binary().encode(weight, 0).decode())
    assert torch.equal(after.tensor(str(other.weight.target)), Minifloat("e5m2").encode(weight, 0).decode())
    assert after.formats[str(one.weight.target)].format == Binary()


def test_a_weight_that_is_skipped_once_stays_for_that_layer():
    before = shared()
    after = EncodeWeights(Binary(), skip=frozenset({before.layers[1].name})).run(before, told())
    _, one, other = after.layers
    assert torch.equal(after.tensor(str(one.weight.target)), before.tensor(str(before.layers[1].weight.target)))
    assert len(after.tensor(str(other.weight.target)).abs().flatten(1).unique(dim=1).T) == 1


def test_a_target_without_signed_weights_gets_float():
    unsigned = Capabilities("test", {"conv": OperatorSupport(UNSIGNED, UNSIGNED)})
    network = FoldBatchNorm().run(captured("residual3d"))
    network = Quantize().run(network, Context(images(network.shape), capabilities=unsigned))
    after = EncodeWeights(Ternary()).run(network, Context(capabilities=unsigned))
    assert {weight_quantizer(after, layer) for layer in after.layers} == {None}


def test_unknown_layers_are_refused():
    for settings in ({"skip": frozenset({"nothing"})}, {"layer_formats": {"nothing": Binary()}}):
        with pytest.raises(OptionError, match="no layer 'nothing'"):
            EncodeWeights(Binary(), **settings).run(quantized("unet2d"), told())


def test_a_weight_that_is_not_finite_is_named():
    network = Quantize(activation_bits=None).run(
        FoldBatchNorm().run(capture(randomize(nn.Sequential(nn.Conv2d(1, 2, 1))), (1, 4, 4))),
        told(),
    )
    network.graph_module.get_parameter("0.weight").data.fill_(float("nan"))
    with pytest.raises(WeightsError, match="weight of 0 cannot be encoded"):
        EncodeWeights(Binary()).run(network, told())


def names_of(network: Network) -> list[str]:
    return [str(layer.weight.target) for layer in network.layers]


@pytest.mark.parametrize("number_format", [Codebook(4, integer=True), Codebook(3)])
def test_a_sparse_network_keeps_its_zeros(number_format: Codebook):
    network = quantized("unet2d").copy()
    for layer in network.layers:
        weight = network.graph_module.get_parameter(str(layer.weight.target)).data
        weight *= torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.8
    kept, lost = (
        EncodeWeights(number_format).run(replace(network, state=network.state | state), told())
        for state in ({"sparse"}, frozenset())
    )
    for name in names_of(network):
        zeros = network.tensor(name) == 0
        assert not bool(kept.tensor(name)[zeros].any())
        assert kept.formats[name].format == replace(number_format, zero=True)
        assert lost.formats[name].format == number_format
    moved = [lost.tensor(name)[network.tensor(name) == 0].any() for name in names_of(lost)]
    assert any(moved) or number_format.integer  # the integer nearest to a small value may be 0
