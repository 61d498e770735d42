import functools

import pytest
import torch
from torch import Tensor, nn

from microtome.core.decomposition.factor import composed
from microtome.core.decomposition.kinds import KINDS, kind_for
from microtome.graph import edit
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.structure.chains import applied, bias_of, chain_macs, kernel, links, walks
from microtome.graph.watching.macs import layer_sizes

SUMS = 2e-5  # the same products, of size 1, in another order

LAYERS = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "point": (nn.Conv2d(6, 5, 1, stride=2), (6, 7, 8)),
    "conv1d": (nn.Conv1d(6, 5, 3, stride=2, padding=1), (6, 9)),
    "conv2d": (nn.Conv2d(6, 5, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (6, 7, 8)),
    "no_bias": (nn.Conv2d(6, 5, 3, bias=False), (6, 7, 8)),
    "same": (nn.Conv2d(6, 5, (3, 4), padding="same", dilation=(1, 2)), (6, 9, 11)),
    "valid": (nn.Conv2d(6, 5, 3, padding="valid"), (6, 7, 9)),
    "flat": (nn.Conv3d(6, 5, (1, 3, 3), stride=(2, 1, 2), padding=(0, 1, 1)), (6, 4, 5, 6)),
    "conv3d": (nn.Conv3d(6, 5, (3, 2, 3), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2)), (6, 5, 5, 6)),
    "transposed1d": (nn.ConvTranspose1d(6, 5, 4, stride=3, padding=1, output_padding=2), (6, 5)),
    "transposed2d": (
        nn.ConvTranspose2d(6, 5, 3, stride=(2, 1), padding=1, output_padding=(1, 0), dilation=(1, 2)),
        (6, 5, 4),
    ),
    "transposed3d": (
        nn.ConvTranspose3d(6, 5, (2, 3, 3), stride=2, output_padding=(0, 1, 1), padding=(0, 1, 0)),
        (6, 2, 4, 3),
    ),
    "up": (nn.ConvTranspose3d(6, 5, 2, stride=2), (6, 2, 4, 3)),
}
LOW = {"svd": (3,), "spatial": (4,), "tucker": (3, 4), "cp": (4,), "tt": (4, 3, 3, 3)}


@functools.cache
def network(name: str) -> Network:
    torch.manual_seed(0)
    return capture(LAYERS[name][0].eval(), LAYERS[name][1])


def planted(name: str, kind: str) -> tuple[Network, Network, list[edit.Link]]:
    """Return a layer whose kernel is a product of few factors, the network with these in its place, and them."""
    one = network(name).copy()
    (layer,) = one.layers
    weight = kernel(one, layer).double()
    what = kind_for(kind, tuple(weight.shape))
    longer = sum(size > 1 for size in weight.shape[2:])
    factors = what.factors(weight, LOW[what.name][: 1 + longer] if what.name == "tt" else LOW[what.name])
    made = composed(factors).float()
    if layer.op == "conv_transpose":
        made = made.transpose(0, 1)
    edit.set_constant(one.graph_module, str(layer.weight.target), made)
    chain = links(layer, factors, bias_of(one, layer), torch.float32)
    other = one.copy()
    edit.replace_layer(other.graph_module, other.layers[0], chain)
    edit.finish(other.graph_module)
    return one, other, chain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_kernel_made_of_factors_is_computed_by_their_chain(name: str, kind: str):
    one, other, chain = planted(name, kind)
    assert len(other.layers) == len(chain) >= 2
    x = torch.randn((3, *LAYERS[name][1]), generator=torch.Generator().manual_seed(1))
    expected = one(x).detach()
    assert torch.allclose(other(x).detach(), expected, atol=SUMS)
    assert torch.equal(applied(chain, x), other(x).detach())
    smaller = x if name == "linear" else x[..., :-1]
    assert torch.allclose(other(smaller).detach(), one(smaller).detach(), atol=SUMS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_multiplications_are_those_of_the_chain(name: str, kind: str):
    one, other, _ = planted(name, kind)
    (layer,) = one.layers
    weight = kernel(one, layer).double()
    what = kind_for(kind, tuple(weight.shape))
    longer = sum(size > 1 for size in weight.shape[2:])
    factors = what.factors(weight, LOW[what.name][: 1 + longer] if what.name == "tt" else LOW[what.name])
    counted = chain_macs(layer, factors, walks(one)[layer.name])
    assert counted == sum(size.macs for size in layer_sizes(other))


def test_the_kernel_of_a_transposed_convolution_has_its_outputs_first():
    (layer,) = network("up").layers
    assert tuple(kernel(network("up"), layer).shape) == (5, 6, 2, 2, 2)
    assert tuple(kernel(network("conv3d"), network("conv3d").layers[0]).shape) == (5, 6, 3, 2, 3)


def test_strides_go_where_the_axis_is_walked():
    chain = planted("conv3d", "spatial")[2]
    first, last = (link.settings for link in chain)
    assert first == ([1, 1, 1], [1, 0, 0], [1, 1, 1], 1)
    assert last == ([1, 2, 1], [0, 1, 1], [1, 1, 2], 1)
    flat: list[Tensor] = [link.weight for link in planted("flat", "tt")[2]]
    assert [tuple(weight.shape[2:]) for weight in flat] == [(1, 1, 1), (1, 3, 1), (1, 1, 3), (1, 1, 1)]
    assert planted("flat", "tt")[2][1].settings[0] == [2, 1, 1]
