import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.columns import Geometry
from microtome.core.composition import Convolution, averaging, composed, identity, summed
from networks import randomize

# A few dozen products in float32, added in another order.
ROUNDING = 5e-6
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def of(layer: nn.Module) -> Convolution:
    bias = None if layer.bias is None else layer.bias.data
    if isinstance(layer, nn.Linear):
        return Convolution(layer.weight.data, bias, Geometry())
    up = isinstance(layer, nn.ConvTranspose2d)
    walk = Geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, up)
    return Convolution(layer.weight.data, bias, walk)


def run(found: Convolution, x: Tensor) -> Tensor:
    walk = found.geometry
    if not walk.kernel:
        return functional.linear(x, found.weight, found.bias)
    if walk.transposed:
        return functional.conv_transpose2d(x, found.weight, found.bias, walk.stride, walk.padding)
    conv = CONV[len(walk.kernel)]
    return conv(x, found.weight, found.bias, walk.stride, walk.padding, walk.dilation, walk.groups)


def conv(i: int, o: int, k: int | tuple[int, ...], **more: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)  # type: ignore[arg-type]


CHAINS = {
    "1x1 behind": (conv(3, 8, 3, padding=1), conv(8, 4, 1)),
    "1x1 with stride behind": (conv(3, 8, 3, padding=1, stride=2), conv(8, 4, 1, stride=2)),
    "1x1 before": (conv(3, 8, 1, bias=False), conv(8, 4, 3, padding=1)),
    "1x1 with bias before a valid one": (conv(3, 8, 1), conv(8, 4, 3)),
    "1x1 with stride before": (conv(3, 8, 1, stride=2, bias=False), conv(8, 4, 3, padding=1)),
    "1x1 with padding before": (conv(3, 8, 1, stride=2, padding=1, bias=False), conv(8, 4, 3, padding=2, stride=2)),
    "3x3 behind 3x3": (conv(3, 8, 3, padding=1), conv(8, 4, 3)),
    "strides and dilations": (conv(3, 8, 3, stride=2, padding=2, dilation=2), conv(8, 4, 3, stride=3, dilation=3)),
    "dilated alone": (conv(3, 8, 3, padding=2, dilation=2), conv(8, 4, 1)),
    "separable": (conv(3, 8, (3, 1), padding=(1, 0), bias=False), conv(8, 4, (1, 3), padding=(0, 1))),
    "equal groups": (conv(4, 8, 3, groups=2), conv(8, 6, 3, groups=2)),
    "depthwise behind": (conv(4, 8, 3, groups=2), conv(8, 8, 3, groups=8)),
    "depthwise before": (conv(6, 6, 1, groups=6, bias=False), conv(6, 4, 3, padding=1, groups=2)),
    "groups of two and three": (conv(6, 6, 1, groups=2), conv(6, 6, 1, groups=3)),
    "four taps": (conv(3, 8, 2), conv(8, 4, 2, stride=2)),
}


@pytest.mark.parametrize("size", [(21, 24), (22, 25)])
@pytest.mark.parametrize("name", CHAINS)
def test_one_behind_the_other(name: str, size: tuple[int, int]):
    first, second = (randomize(layer) for layer in CHAINS[name])
    found = composed(of(first), of(second))
    assert found is not None
    x = torch.randn(2, first.in_channels, *size)
    expected = second(first(x)).detach()
    assert run(found, x).shape == expected.shape
    assert torch.allclose(run(found, x), expected, atol=ROUNDING * float(expected.abs().max()))


def test_the_merged_kernel_is_no_larger_than_it_has_to_be():
    def walk(name: str) -> Geometry:
        found = composed(*(of(layer) for layer in CHAINS[name]))
        assert found is not None
        return found.geometry

    assert walk("dilated alone") == Geometry((3, 3), (1, 1), (2, 2), (2, 2))
    assert walk("1x1 with stride before") == Geometry((3, 3), (2, 2), (2, 2), (2, 2))
    assert walk("separable") == Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    assert walk("strides and dilations").kernel == (9, 9)  # taps at 0, 2, 4 and at 0, 6, 12: every second up to 16
    assert walk("depthwise behind").groups == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (conv(3, 8, 1), conv(8, 4, 3, padding=1)),  # the bias is not seen beyond the border
        (conv(3, 8, 3, padding=1, bias=False), conv(8, 4, 3, padding=1)),  # nor what the larger kernel would see there
        (conv(3, 8, 3, padding=1), conv(8, 4, 1, padding=1)),
        (conv(3, 8, (1, 3), bias=False), conv(8, 4, (1, 3), padding=(1, 1))),
    ],
)
def test_what_would_differ_at_the_border_is_refused(first: nn.Module, second: nn.Module):
    assert composed(of(randomize(first)), of(randomize(second))) is None


def test_linear_layers():
    first, second = randomize(nn.Linear(5, 7)), randomize(nn.Linear(7, 3))
    found = composed(of(first), of(second))
    assert found is not None
    x = torch.randn(4, 5)
    assert torch.allclose(run(found, x), second(first(x)), atol=ROUNDING)


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes: int):
    make = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    first, second = randomize(make(2, 4, 3, padding=1)), randomize(make(4, 3, 2, stride=2))
    found = composed(of(first), of(second))
    assert found is not None
    x = torch.randn(1, 2, *(7,) * axes)
    assert torch.allclose(run(found, x), second(first(x)), atol=ROUNDING * 4)


def test_a_pool_is_a_convolution_with_a_stride():
    first, pool = randomize(conv(3, 8, 3, padding=1)), nn.AvgPool2d(2)
    found = composed(of(first), averaging(8, Geometry((2, 2), (2, 2), (0, 0), (1, 1), 8), first.weight.data))
    assert found is not None
    assert found.geometry == Geometry((4, 4), (2, 2), (1, 1), (1, 1))
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(run(found, x), pool(first(x)), atol=ROUNDING)


def test_one_tap_joins_a_transposed_convolution():
    up, flat = randomize(nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1)), randomize(conv(5, 4, 1))
    before, before_bias = randomize(conv(3, 6, 1, bias=False)), randomize(conv(3, 6, 1))
    behind, ahead = composed(of(up), of(flat)), composed(of(before), of(up))
    assert behind is not None
    assert ahead is not None
    x, y = torch.randn(2, 6, 5, 5), torch.randn(2, 3, 5, 5)
    assert torch.allclose(run(behind, x), flat(up(x)), atol=ROUNDING)
    assert torch.allclose(run(ahead, y), up(before(y)), atol=ROUNDING)
    assert composed(of(before_bias), of(up)) is None
    assert composed(of(up), of(randomize(conv(5, 4, 3)))) is None


SUMS = {
    "RepVGG": (conv(4, 6, 3, padding=1), conv(4, 6, 1)),
    "with a stride": (conv(4, 6, 3, padding=1, stride=2), conv(4, 6, 1, stride=2)),
    "of the same size": (conv(4, 6, 3, padding=1, bias=False), conv(4, 6, 3, padding=1)),
    "no biases": (conv(4, 6, 5, padding=2, bias=False), conv(4, 6, 3, padding=1, bias=False)),
    "dilated": (conv(4, 6, 3, padding=2, dilation=2), conv(4, 6, 3, padding=1)),
    "dilated with 1x1": (conv(4, 6, 3, padding=2, dilation=2), conv(4, 6, 1)),
    "crossed": (conv(4, 6, (3, 1), padding=(1, 0)), conv(4, 6, (1, 3), padding=(0, 1))),
    "grouped": (conv(4, 6, 3, padding=1, groups=2), conv(4, 6, 1)),
    "valid": (conv(4, 6, 3), conv(4, 6, 5, padding=1)),
}


@pytest.mark.parametrize("name", SUMS)
def test_side_by_side(name: str):
    one, other = (randomize(layer, seed) for seed, layer in enumerate(SUMS[name]))
    x = torch.randn(2, 4, 9, 10)
    for a, b in ((one, other), (other, one)):
        found = summed(of(a), of(b))
        assert found is not None
        assert torch.allclose(run(found, x), a(x) + b(x), atol=ROUNDING)


def test_side_by_side_with_nothing():
    layer, x = randomize(conv(4, 4, 3, padding=1)), torch.randn(2, 4, 6, 6)
    found = summed(of(layer), identity(4, 2, layer.weight.data))
    assert found is not None
    assert found.weight.shape == layer.weight.shape
    assert torch.allclose(run(found, x), layer(x) + x, atol=ROUNDING)
    dilated = summed(of(randomize(SUMS["dilated with 1x1"][0])), of(randomize(SUMS["dilated with 1x1"][1])))
    assert dilated is not None
    assert dilated.geometry.kernel == (3, 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (conv(4, 6, 3, padding=1), conv(4, 6, 1, stride=2)),
        (conv(4, 6, 3, padding=1), conv(4, 6, 3)),
        (conv(4, 6, 2), conv(4, 6, 3, padding=1)),
    ],
)
def test_outputs_of_other_sizes_are_not_added(one: nn.Module, other: nn.Module):
    assert summed(of(one), of(other)) is None


def test_what_would_be_too_large_is_not_computed():
    first, second = (of(layer) for layer in CHAINS["3x3 behind 3x3"])
    assert composed(first, second, most=3 * 4 * 25) is not None
    assert composed(first, second, most=3 * 4 * 25 - 1) is None
    one, other = (of(layer) for layer in SUMS["crossed"])
    assert summed(one, other, most=4 * 6 * 9) is not None
    assert summed(one, other, most=4 * 6 * 9 - 1) is None
