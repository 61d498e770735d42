"""What holds for every method on every tiny network. A new method adds one line to METHODS."""

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor

from microtome.core.affine import fake_quantize
from microtome.core.formats import PowerOfTwo
from microtome.errors import OptionError
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.methods.adaround import AdaRound
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Method
from microtome.methods.bias_analytic import CorrectBiasAnalytically
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.encode import EncodeWeights
from microtome.methods.equalize import Equalize
from microtome.methods.even_layernorm import EvenLayerNorm
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.gptq import Gptq
from microtome.methods.quantize import Quantize
from microtome.methods.reconstruct import Reconstruct
from microtome.methods.smooth import Smooth
from microtome.recipes import Recipe, run
from networks import EVERYTHING, NETWORKS, captured, images

# Each method, and the methods that must have run before it.
METHODS: dict[str, tuple[Method, tuple[Method, ...]]] = {
    "fold": (FoldBatchNorm(), ()),
    "quantize": (Quantize(EVERYTHING), (FoldBatchNorm(),)),
    "correct_bias": (CorrectBias(), (FoldBatchNorm(), Quantize(EVERYTHING))),
    "correct_bias_analytically": (CorrectBiasAnalytically(), (FoldBatchNorm(), Quantize(EVERYTHING))),
    "gptq": (Gptq(), (FoldBatchNorm(), Quantize(EVERYTHING, weight_bits=4))),
    "encode": (EncodeWeights(EVERYTHING, PowerOfTwo(4)), (FoldBatchNorm(), Quantize(EVERYTHING))),
    "equalize": (Equalize(), (FoldBatchNorm(),)),
    "smooth": (Smooth(), (FoldBatchNorm(),)),
    "even_layernorm": (EvenLayerNorm(), ()),
    "adaround": (AdaRound(steps=3), (FoldBatchNorm(), Quantize(EVERYTHING, weight_bits=4))),
    "reconstruct": (Reconstruct(steps=3), (FoldBatchNorm(), Quantize(EVERYTHING, weight_bits=4))),
    "finetune": (Finetune(steps=2), (FoldBatchNorm(), Quantize(EVERYTHING, weight_bits=4))),
    "attention": (QuantizeAttention(softmax="twin", gelu="twin"), (FoldBatchNorm(), Quantize(EVERYTHING))),
}
WITH_LAYERS = [name for name in NETWORKS if name != "nothing"]

every_method = pytest.mark.parametrize("method", METHODS)
every_network = pytest.mark.parametrize("network", WITH_LAYERS)


@cache
def before(method: str, network: str) -> Network:
    """Return the network in the state that the method needs."""
    result = captured(network)
    for step in METHODS[method][1]:
        result = step(result, images(result.shape))
    return result


@cache
def after(method: str, network: str) -> tuple[Network, str, str]:
    """Return the method's result, and the input's fingerprint before and after the call."""
    given = before(method, network)
    fingerprint = given.fingerprint()
    result = METHODS[method][0](given, images(given.shape))
    return result, fingerprint, given.fingerprint()


def one_step(network: Network) -> Tensor:
    """Return how far each channel of the output moves, at most, if every input of the last layer moves by one step.

    A value that lies between two steps falls to either side; what lies behind it follows, and falls by one step too.
    Nothing falls where the last layer's input has no quantizer.
    """
    last = network.layers[-1]
    weight, grid = network.tensor(str(last.weight.target)), weight_quantizer(network, last)
    rounded = weight if grid is None else fake_quantize(weight, grid)
    step = input_quantizer(network, last)
    return rounded.abs().sum((1, 2, 3)) * (0.0 if step is None else step.scale)


@every_method
def test_a_method_is_a_frozen_dataclass(method: str):
    value = METHODS[method][0]
    assert dataclasses.is_dataclass(value)
    assert type(value).__dataclass_params__.frozen
    assert value.leaves
    assert dataclasses.replace(value) == value


@every_method
@every_network
def test_the_network_passed_is_not_changed(method: str, network: str):
    given = before(method, network)
    state, history = given.state, given.history
    _, fingerprint, later = after(method, network)
    assert later == fingerprint
    assert (given.state, given.history) == (state, history)


@every_method
@every_network
def test_the_state_gains_what_the_method_leaves(method: str, network: str):
    result = after(method, network)[0]
    assert result.state == before(method, network).state | METHODS[method][0].leaves
    assert (result.shape, result.dynamic) == (captured(network).shape, captured(network).dynamic)


@every_method
@every_network
def test_the_result_computes_finite_values_of_the_same_shape(method: str, network: str):
    x = images(captured(network).shape)[0]
    output = after(method, network)[0](x)
    assert output.shape == captured(network)(x).shape
    assert bool(torch.isfinite(output).all())


@every_method
@every_network
def test_the_same_input_gives_the_same_network(method: str, network: str):
    given = before(method, network)
    again = METHODS[method][0](given, images(given.shape))
    assert again.fingerprint() == after(method, network)[0].fingerprint()


@every_method
@every_network
def test_the_result_survives_the_file(method: str, network: str, tmp_path):
    result = after(method, network)[0]
    pt2.save(result, tmp_path / "network.pt2")
    loaded = pt2.load(tmp_path / "network.pt2")
    x = images(result.shape, seed=9)[0]
    assert torch.equal(loaded(x), result(x))
    assert (loaded.state, loaded.dynamic, loaded.shape) == (result.state, result.dynamic, result.shape)
    assert [layer.op for layer in loaded.layers] == [layer.op for layer in result.layers]


@every_method
def test_other_batch_sizes_still_run(method: str):
    result = after(method, "unet2d")[0]
    x = torch.cat(images(result.shape))
    together, alone = result(x)[:1], result(x[:1])
    # kernels for other batch sizes sum in other orders, and a value between two steps may fall to the other side
    same = torch.isclose(together, alone, atol=1e-5)
    assert float(same.float().mean()) > 0.9
    assert bool((same | ((together - alone).abs() <= one_step(result)[:, None, None])).all())


@every_method
def test_the_recipe_refuses_the_method_without_what_it_needs(method: str):
    value, steps = METHODS[method]
    for left_out in range(len(steps)):
        chosen = (*steps[:left_out], *steps[left_out + 1 :], value)
        with pytest.raises(OptionError, match=r"cannot run \w+ before"):
            Recipe("test", chosen)


@every_method
def test_the_recipe_refuses_the_method_in_a_state_where_it_makes_no_sense(method: str):
    value, steps = METHODS[method]
    assert value.refuses
    network = dataclasses.replace(captured("shared2d"), state=value.refuses)
    with pytest.raises(OptionError, match="the network is already"):
        run(Recipe("test", (*steps, value)), network, images(network.shape))
