"""What holds for every method on every tiny network. A new method adds one line to STEPS."""

import dataclasses
from dataclasses import replace
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
from microtome.methods import METHODS
from microtome.methods.adaround import AdaRound
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Context, Method, Phase
from microtome.methods.bias_analytic import CorrectBiasAnalytically
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.distill import Distill
from microtome.methods.encode import EncodeWeights
from microtome.methods.equalize import Equalize
from microtome.methods.even_layernorm import EvenLayerNorm
from microtome.methods.factorize import Factorize
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.gptq import Gptq
from microtome.methods.group_channels import GroupChannels
from microtome.methods.merge_channels import MergeChannels
from microtome.methods.merge_layers import MergeLayers
from microtome.methods.prune import Prune
from microtome.methods.quantize import Quantize
from microtome.methods.reconstruct import Reconstruct
from microtome.methods.replace_norms import ReplaceNorms
from microtome.methods.smooth import Smooth
from microtome.methods.sparsify import Sparsify
from microtome.recipes import Recipe, run
from microtome.types import OperatorSupport
from networks import EVERYTHING, NETWORKS, UNSIGNED, captured, images

# Each method, and the methods that must have run before it.
STEPS: dict[str, tuple[Method, tuple[Method, ...]]] = {
    "fold": (FoldBatchNorm(), ()),
    "replace_norms": (ReplaceNorms(), ()),
    "merge_channels": (MergeChannels(share=0.2), ()),
    "group_channels": (GroupChannels(least_channels=4, gather=True), ()),
    "merge_layers": (MergeLayers(), (FoldBatchNorm(),)),
    "quantize": (Quantize(), (FoldBatchNorm(),)),
    "correct_bias": (CorrectBias(), (FoldBatchNorm(), Quantize())),
    "correct_bias_analytically": (CorrectBiasAnalytically(), (FoldBatchNorm(), Quantize())),
    "gptq": (Gptq(), (FoldBatchNorm(), Quantize(weight_bits=4))),
    "encode": (EncodeWeights(PowerOfTwo(4)), (FoldBatchNorm(), Quantize())),
    "prune": (Prune(0.2), ()),
    "sparsify": (Sparsify(), ()),
    "equalize": (Equalize(), (FoldBatchNorm(),)),
    "smooth": (Smooth(), (FoldBatchNorm(),)),
    "even_layernorm": (EvenLayerNorm(), ()),
    "factorize": (Factorize(energy=0.98, least=100, round_to=2), ()),
    "adaround": (AdaRound(steps=3), (FoldBatchNorm(), Quantize(weight_bits=4))),
    "reconstruct": (Reconstruct(steps=3), (FoldBatchNorm(), Quantize(weight_bits=4))),
    "finetune": (Finetune(steps=2), (FoldBatchNorm(), Quantize(weight_bits=4))),
    "distill": (Distill(steps=2), ()),
    "attention": (QuantizeAttention(softmax="twin", gelu="twin"), (FoldBatchNorm(), Quantize())),
}
# Tests of their own: it quantizes no convolutions; it runs others; it needs layers that can become narrower.
ELSEWHERE = {"dynamic", "repeat", "search"}
FURTHER: dict[str, Method] = {"sparsify": Sparsify(share=0.8)}
"""What runs again where a method has done what it was told: its share of zeros counts those that are there."""
ON_ANY = {"fold", "even_layernorm", "finetune", "distill", "factorize", "prune", "sparsify", "replace_norms"}
ON_ANY |= {"merge_channels", "group_channels"}
"""Methods that need no state."""
REFUSED = {("prune", "shared2d"), ("prune", "tied2d")}
"""All channels of these are inputs or outputs too: the method says so."""
WITH_PRODUCTS = replace(EVERYTHING, operators={**EVERYTHING.operators, "matmul": OperatorSupport(UNSIGNED, UNSIGNED)})
WITH_LAYERS = [name for name in NETWORKS if name != "nothing"]

every_method = pytest.mark.parametrize("method", STEPS)
every_network = pytest.mark.parametrize("network", WITH_LAYERS)
AT_EACH_EDIT = ("unet2d", "transformer")  # a file takes longer than a method
every_file = pytest.mark.parametrize(
    "network", [pytest.param(name, marks=() if name in AT_EACH_EDIT else pytest.mark.slow) for name in WITH_LAYERS]
)


@pytest.fixture(autouse=True)
def _unless_refused(request: pytest.FixtureRequest) -> None:
    """Leave out what a method refuses, after having seen it refuse."""
    given = getattr(request.node, "callspec", None)
    pair = (given.params.get("method"), given.params.get("network")) if given is not None else None
    if pair in REFUSED:
        network = before(*pair)
        with pytest.raises(OptionError, match=r"none of 1 groups can lose a unit \(\w+: it is an (in|out)put"):
            STEPS[pair[0]][0].run(network, context(network))
        pytest.skip("the method refuses the network")


def context(network: Network) -> Context:
    batches = images(network.shape)
    return Context(batches, training=batches, capabilities=WITH_PRODUCTS)


@cache
def before(method: str, network: str) -> Network:
    """Return the network in the state that the method needs."""
    result = captured(network)
    for step in STEPS[method][1]:
        result = step.run(result, context(result))
    return result


@cache
def after(method: str, network: str) -> tuple[Network, str, str]:
    """Return the method's result, and the input's fingerprint before and after the call."""
    given = before(method, network)
    fingerprint = given.fingerprint()
    result = STEPS[method][0].run(given, context(given))
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
    value = STEPS[method][0]
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
def test_the_state_gains_what_the_method_leaves_and_loses_what_it_takes(method: str, network: str):
    result, value = after(method, network)[0], STEPS[method][0]
    assert result.state == (before(method, network).state - value.takes) | value.leaves
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
    again = STEPS[method][0].run(given, context(given))
    assert again.fingerprint() == after(method, network)[0].fingerprint()


@every_method
@every_file
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
    value, steps = STEPS[method]
    assert bool(value.needs) == (method not in ON_ANY)
    network = captured("shared2d")
    if value.needs:
        with pytest.raises(OptionError, match=f"cannot run {type(value).__name__}: it needs a network in the state"):
            Recipe("test", (value,))
    Recipe("test", (*steps, value))
    for left_out in value.needs:
        held = replace(network, state=value.needs - {left_out})
        assert left_out in (value.refusal(held.state) or "")


@every_method
def test_the_method_runs_again_or_refuses_itself(method: str):
    value, steps = STEPS[method]
    if value.again:
        assert Recipe("test", (*steps, value, value)).methods
        assert FURTHER.get(method, value).run(after(method, "unet2d")[0], context(captured("unet2d"))).state
    else:
        with pytest.raises(OptionError, match=r"needs a network in the state|already"):
            Recipe("test", (*steps, value, value))
        with pytest.raises(OptionError, match=r"needs a network in the state|already"):
            run(Recipe("test", (*steps, value)), after(method, "shared2d")[0], context(captured("shared2d")))


@every_method
def test_structure_does_not_change_behind_numbers(method: str):
    value = STEPS[method][0]
    why = value.refusal(value.needs | {"quantized", "folded"} - value.leaves)
    assert ("changes the structure" in (why or "")) == (value.phase is Phase.STRUCTURE)


def test_every_method_of_the_list_is_here():
    assert METHODS.keys() == STEPS.keys() | ELSEWHERE
    for name, (value, _) in STEPS.items():
        assert METHODS[name] == f"{type(value).__module__}:{type(value).__qualname__}"


@pytest.mark.parametrize("method", [name for name, (method, _) in STEPS.items() if hasattr(method, "skip")])
def test_a_name_to_skip_that_there_is_not_is_refused(method: str):
    given = before(method, "residual3d")
    with pytest.raises(OptionError, match=r"the network has no .* 'nobody'"):
        replace(STEPS[method][0], skip=frozenset({"nobody"})).run(given, context(given))
