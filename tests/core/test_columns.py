import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from microtome.core.columns import column_sum, columns, from_rows, rows
from microtome.graph.capture import capture
from microtome.graph.watching.moments import geometry

SUMS = 1e-5  # the same products in another order, of size 1

LAYERS = {
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (3, 7, 8)),
    "same": (nn.Conv2d(2, 3, (3, 4), padding="same", dilation=(1, 2)), (2, 7, 9)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 7, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6)),
    "conv3d": (nn.Conv3d(4, 6, 3, padding=1, groups=2), (4, 4, 5, 6)),
    "transposed1d": (nn.ConvTranspose1d(3, 2, 4, stride=3, padding=1), (3, 5)),
    "transposed2d": (nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1), (3, 5, 4)),
    "transposed_groups": (nn.ConvTranspose2d(4, 6, (2, 3), stride=2, groups=2, dilation=(1, 2)), (4, 5, 4)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 4, 3)),
    "linear": (nn.Linear(5, 3), (4, 6, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_columns_times_rows_are_the_layers_output(name: str):
    layer, shape = LAYERS[name]
    node = capture(layer, shape).layers[0].node
    where = geometry(node)
    x = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x)
        if name != "linear":
            expected = expected - layer.bias.reshape(-1, *[1] * (x.ndim - 2))
            flat = expected.movedim(1, -1)
        else:
            flat = expected - layer.bias
        flat = flat.reshape(-1, flat.shape[-1])
        positions = torch.arange(len(flat))
        seen = columns(x, where, positions, tuple(expected.shape[2:]))
        product = seen @ rows(layer.weight, where).transpose(1, 2)
    assert torch.allclose(product.movedim(1, 0).reshape(len(flat), -1), flat, atol=SUMS)
    some = torch.tensor([3, 0, len(flat) - 1])
    assert torch.equal(columns(x, where, some, tuple(expected.shape[2:])), seen[:, some])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["plain", "channels last"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_sum_of_columns_is_that_of_all_gathered_ones(name: str, layout: str, batch: int):
    layer, shape = LAYERS[name]
    where = geometry(capture_once(name).layers[0].node)
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
    if layout == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.no_grad():
        output = layer(x)
    size = tuple(output.shape[2:])
    positions = torch.arange(output.numel() // output.shape[-1 if name == "linear" else 1])
    expected = columns(x, where, positions, size).double().sum(1)
    assert torch.allclose(column_sum(x, where, size), expected, atol=SUMS, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(LAYERS)), st.integers(0, 9))
def test_rows_turn_back_into_the_weight(name: str, seed: int):
    layer = LAYERS[name][0]
    where = geometry(capture_once(name).layers[0].node)
    weight: Tensor = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(from_rows(rows(weight, where), where, weight.shape), weight)


def capture_once(name: str, cache: dict[str, object] = {}):  # noqa: B006
    if name not in cache:
        cache[name] = capture(*LAYERS[name])
    return cache[name]


def test_rows_of_a_transposed_convolution_by_hand():
    where = geometry(capture_once("transposed_groups").layers[0].node)
    weight = torch.arange(4 * 3 * 6.0).reshape(4, 3, 2, 3)
    matrices = rows(weight, where)
    assert matrices.shape == (2, 3, 2 * 6)
    for group, output, channel in itertools.product(range(2), range(3), range(2)):
        expected = weight[2 * group + channel, output].flatten()
        assert torch.equal(matrices[group, output, 6 * channel : 6 * channel + 6], expected)
